//! What is said once everything is up: addresses, people, and commands to copy.

use tollgate_local::stack::{ACME, ALICE, PAUPER, PEOPLE, Stack};

use crate::account::Printer;

/// Says it.
pub fn print(printer: Printer, stack: &Stack) {
    let edge = stack.envoy.edge_url();
    let received = format!("{}/_received", stack.runmesh.url());
    printer.plain(printer.bold("Tollgate is up, on loopback only."));
    printer.plain("");
    for (label, url, about) in [
        ("edge", edge.to_owned(), "Envoy; send your requests here"),
        ("console", format!("{}/", stack.tollgate.admin_url()), "Tollgate, for people; also /metrics and /readyz"),
        ("billing", received.clone(), "the entries that Runmesh has received"),
        ("envoy", stack.envoy.admin_url().to_owned(), "Envoy's own pages"),
    ] {
        printer.plain(format_args!("  {label:<8} {url:<34} {about}"));
    }
    printer.plain("");
    printer.plain(printer.bold("Bearer tokens:"));
    for person in PEOPLE {
        printer.plain(format_args!("  {:<20} {:<14} {:<22} {}", person.token, person.sub, person.email, person.about));
    }
    printer.plain("");
    printer.plain(printer.bold("To try in another terminal:"));
    for (title, command) in commands(edge, &received) {
        printer.plain("");
        printer.plain(printer.coloured(90, &format!("# {title}")));
        printer.plain(command);
    }
    printer.plain("");
    printer.plain(printer.bold("What happens from here on (Ctrl-C stops everything):"));
}

fn commands(edge: &str, received: &str) -> Vec<(&'static str, String)> {
    let bearer = |token: &str| format!("-H 'Authorization: Bearer {token}'");
    let (alice, pauper, acme) = (bearer(ALICE.token), bearer(PAUPER.token), bearer(ACME.token));
    let workflow = "-H 'Content-Type: text/plain' -d '- name: train'";
    vec![
        (
            "a submission; its task's id is kept",
            format!(
                "TASK=$(curl -s {edge}/api/v1/workflows {alice} \\\n  {workflow} \\\n  \
                 | sed 's/.*\"task_id\":\"\\([^\"]*\\)\".*/\\1/'); echo $TASK"
            ),
        ),
        ("a read of the task, and of all workflows", {
            format!(
                "curl -iw '\\n' \"{edge}/api/v1/tasks/$TASK\" {alice}\ncurl -iw '\\n' {edge}/api/v1/workflows {alice}"
            )
        }),
        ("a bad token", format!("curl -iw '\\n' {edge}/api/v1/workflows {}", bearer("nonsense"))),
        ("no token", format!("curl -iw '\\n' {edge}/api/v1/workflows")),
        ("a poor user: the guard is on", format!("curl -iw '\\n' {edge}/api/v1/workflows {pauper} \\\n  {workflow}")),
        (
            "the end of the task, as its worker reports it; the charge follows within a second",
            format!(
                "curl -iw '\\n' {edge}/api/v1/results {acme} \\\n  \
                 -H 'Content-Type: application/json' -d '{{\"task_id\":\"'$TASK'\",\"result\":{{\"loss\":0.1}}}}'"
            ),
        ),
        ("the billing entries received", format!("curl {received}")),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_fits_on_a_screen() {
        for (title, command) in commands("http://127.0.0.1:18080", "http://127.0.0.1:17002/_received") {
            for line in command.lines() {
                assert!(line.chars().count() < 110, "{title}: {line}");
            }
        }
    }
}
