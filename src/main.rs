//! Parses, runs, returns an exit code.

use std::process::ExitCode;

use tollgate::cli::{self, Cli};

fn main() -> ExitCode {
    match cli::run(Cli::read()) {
        Ok(code) => code,
        Err(error) => {
            // One line: the causes are part of the sentence.
            eprintln!("tollgate: {error:#}");
            ExitCode::FAILURE
        }
    }
}
