//! How long Tollgate takes to be ready.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    process::Command,
};
use tollgate_local::stack::Process;

use crate::{
    context::Context,
    figure::Figure,
    ledgers,
    section::Measured,
    served::{self, Around},
};

/// Nobody waits longer for it.
const LIMIT: Duration = Duration::from_secs(30);

/// Measures.
pub async fn run(context: &Context) -> Result<Measured> {
    let dir = context.folder()?;
    let full = dir.path().join("full.db");
    ledgers::copy_posted(context, &full).await?;
    // Once, so that nothing of the first start (a schema that is brought up to date, pages that are not in memory) is measured.
    ready(context, &full).await?;
    let (mut with_many, mut empty) = (Vec::new(), Vec::new());
    for round in 0..context.rounds {
        context.progress("start", round, "from exec to ready");
        with_many.push(ready(context, &full).await?.as_secs_f64() * 1e3);
        empty.push(ready(context, &dir.path().join(format!("empty-{round}.db"))).await?.as_secs_f64() * 1e3);
    }
    let how = "from the start of the process to the first 200 of /readyz, asked every millisecond; billing on; the process before \
               was killed";
    Ok(Measured {
        about: "From nothing to ready.".to_owned(),
        figures: vec![
            Figure::new(
                "start.many",
                &format!("Start to ready, {} charges in the ledger", ledgers::many(context)),
                "ms",
                with_many,
                how,
            ),
            Figure::new("start.empty", "Start to ready, no ledger yet: its file is made", "ms", empty, how),
        ],
        notes: Vec::new(),
    })
}

/// Starts Tollgate and kills it when it is ready.
async fn ready(context: &Context, ledger: &Path) -> Result<Duration> {
    let settings = served::settings(&Around::default(), Some(&served::file(ledger)))?;
    let admin = settings.iter().find(|(name, _)| *name == "TOLLGATE_ADMIN_LISTEN").map(|(_, address)| address.clone());
    let admin = admin.context("there is no admin address")?;
    let mut command = Command::new(context.tollgate()?);
    command.arg("serve").envs(settings);
    let begun = Instant::now();
    let process = Process::start("tollgate", command, None)?;
    while !is_ready(&admin).await {
        if begun.elapsed() > LIMIT || process.exited().is_some() {
            bail!("Tollgate was not ready within {LIMIT:?}; {}", process.last_lines());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let took = begun.elapsed();
    process.kill_hard().await?;
    Ok(took)
}

/// The plainest of HTTP requests: a client with a pool would cost more than is measured.
async fn is_ready(admin: &str) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(admin).await?;
        let request = format!("GET /readyz HTTP/1.1\r\nhost: {admin}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>(answer.starts_with("HTTP/1.1 200"))
    };
    ask.await.unwrap_or(false)
}
