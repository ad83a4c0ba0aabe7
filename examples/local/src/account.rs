//! The running account: one line for each thing that happens, from all sources in one order.

use std::{
    fmt,
    io::{IsTerminal as _, Write as _},
};

use serde_json::Value;
use tokio::sync::mpsc;
use tollgate_local::{
    control::StandIn,
    stack::{Output, Stack},
    standin::FlowMeshHappened,
};

/// Whose line it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Tollgate,
    Envoy,
    LumId,
    Runmesh,
    FlowMesh,
    Local,
}

impl Source {
    pub fn name(self) -> &'static str {
        match self {
            Self::Tollgate => "tollgate",
            Self::Envoy => "envoy",
            Self::LumId => "lum.id",
            Self::Runmesh => "runmesh",
            Self::FlowMesh => "flowmesh",
            Self::Local => "local",
        }
    }

    /// ANSI colour.
    fn colour(self) -> u8 {
        match self {
            Self::Tollgate => 36,
            Self::Envoy => 35,
            Self::LumId => 34,
            Self::Runmesh => 32,
            Self::FlowMesh => 33,
            Self::Local => 37,
        }
    }
}

/// Writes lines to standard output.
#[derive(Clone, Copy)]
pub struct Printer {
    colour: bool,
}

impl Printer {
    /// In colour only on a terminal, and not where `NO_COLOR` is set.
    pub fn new() -> Self {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { colour: std::io::stdout().is_terminal() && !unwanted }
    }

    /// A line of its own. False when there is nobody to read it any more.
    #[expect(clippy::unused_self, reason = "all that is printed goes through a printer")]
    pub fn plain(self, text: impl fmt::Display) -> bool {
        writeln!(std::io::stdout(), "{text}").is_ok()
    }

    /// A line of the account. False when there is nobody to read it any more.
    pub fn line(self, source: Source, text: impl fmt::Display) -> bool {
        let name = source.name();
        if self.colour {
            self.plain(format_args!("\x1b[{}m{name:<8} │\x1b[0m {text}", source.colour()))
        } else {
            self.plain(format_args!("{name:<8} │ {text}"))
        }
    }

    /// `text` as one that is to be seen.
    pub fn bold(self, text: &str) -> String {
        if self.colour { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// `text` in a colour.
    pub fn coloured(self, colour: u8, text: &str) -> String {
        if self.colour { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Makes a line of a process readable, or leaves it out.
pub type Render = fn(&str) -> Option<String>;

/// The lines of all sources.
pub struct Account {
    lines: mpsc::UnboundedReceiver<(Source, String)>,
    sender: mpsc::UnboundedSender<(Source, String)>,
}

impl Account {
    pub fn new() -> Self {
        let (sender, lines) = mpsc::unbounded_channel();
        Self { lines, sender }
    }

    /// Takes the lines that a process prints, made readable by `render`; those it gives none for are
    /// left out.
    pub fn output(&self, source: Source, render: Render) -> Output {
        let (sender, printed) = mpsc::unbounded_channel::<String>();
        self.forward(source, printed, move |line| render(line));
        sender
    }

    /// Takes what the stand-ins tell from now on.
    pub fn follow(&self, stack: &Stack) {
        self.follow_one(&StandIn::LumId(stack.lum_id.clone()));
        self.follow_one(&StandIn::Runmesh(stack.runmesh.clone()));
        self.follow_one(&StandIn::FlowMesh(stack.flowmesh.clone()));
    }

    /// Takes what this one tells from now on.
    pub fn follow_one(&self, standin: &StandIn) {
        match standin {
            StandIn::LumId(lum_id) => {
                self.forward(Source::LumId, lum_id.subscribe(), |happened| Some(happened.to_string()));
            }
            StandIn::Runmesh(runmesh) => {
                self.forward(Source::Runmesh, runmesh.subscribe(), |happened| Some(happened.to_string()));
            }
            StandIn::FlowMesh(flowmesh) => self.forward(Source::FlowMesh, flowmesh.subscribe(), flowmesh_line),
        }
    }

    /// The next line.
    pub async fn next(&mut self) -> Option<(Source, String)> {
        self.lines.recv().await
    }

    /// What is there already.
    pub fn waiting(&mut self) -> Vec<(Source, String)> {
        std::iter::from_fn(|| self.lines.try_recv().ok()).collect()
    }

    fn forward<T: Send + 'static>(
        &self,
        source: Source,
        mut receiver: mpsc::UnboundedReceiver<T>,
        render: impl Fn(&T) -> Option<String> + Send + 'static,
    ) {
        let sender = self.sender.clone();
        tokio::spawn(async move {
            while let Some(item) = receiver.recv().await {
                if let Some(line) = render(&item)
                    && sender.send((source, line)).is_err()
                {
                    return;
                }
            }
        });
    }
}

/// A line of Tollgate's JSON log: its message, its level where that matters, and the supplier.
pub fn tollgate_line(line: &str) -> Option<String> {
    let Ok(event) = serde_json::from_str::<Value>(line) else {
        return (!line.trim().is_empty()).then(|| line.to_owned());
    };
    let mut text = match event["level"].as_str() {
        Some(level @ ("WARN" | "ERROR")) => format!("{level}: "),
        _ => String::new(),
    };
    text.push_str(event["message"].as_str()?);
    if let Some(supplier) = event["supplier"].as_str() {
        text.push_str(", supplier ");
        text.push_str(supplier);
    }
    Some(text)
}

/// A line of Envoy; not the one by which it confirms that it is being stopped.
pub fn envoy_line(line: &str) -> Option<String> {
    (!line.trim().is_empty() && !line.ends_with("caught ENVOY_SIGTERM")).then(|| line.to_owned())
}

/// What FlowMesh got and answered, with the identity that came along. Tollgate's own questions, with
/// which it settles and keeps its list of workers, are left out: they come every few seconds.
fn flowmesh_line(happened: &FlowMeshHappened) -> Option<String> {
    let FlowMeshHappened::Answered { seen, status } = happened else {
        return Some(happened.to_string());
    };
    let identity = |name: &str| seen.header(&format!("x-flowmesh-{name}"));
    let own = seen.header("user-agent").is_some_and(|agent| agent.starts_with("tollgate/"));
    let path = seen.path_and_query.split('?').next().unwrap_or_default();
    let status = status.map_or_else(|| "closed".to_owned(), |status| status.to_string());
    let mut text = format!("{} {path} → {status}", seen.method);
    match (identity("principal-id"), identity("org-id"), identity("scopes")) {
        (None, _, _) if own => return None,
        (None, _, _) => text.push_str(", no principal"),
        (Some(principal), org, scopes) => {
            let (org, scopes) = (org.unwrap_or("no org"), scopes.unwrap_or("no scopes"));
            text += &format!(", as {principal} of {org} [{scopes}]");
        }
    }
    if let Some(supplier) = identity("supplier-id") {
        text += &format!(", supplier {supplier}");
    }
    if seen.header("authorization").is_some() {
        text.push_str(", with authorization");
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_tollgate_is_its_message_with_what_matters() {
        let line = r#"{"level":"DEBUG","message":"POST /api/v1/results: allowed as a","supplier":"acme","token":"1f"}"#;
        assert_eq!(tollgate_line(line).unwrap(), "POST /api/v1/results: allowed as a, supplier acme");
        let line = r#"{"level":"WARN","message":"not posted"}"#;
        assert_eq!(tollgate_line(line).unwrap(), "WARN: not posted");
        assert_eq!(tollgate_line("thread panicked").unwrap(), "thread panicked");
        assert_eq!(tollgate_line(""), None);
    }
}
