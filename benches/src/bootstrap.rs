//! Envoy's bootstrap: the one that `tollgate envoy-config` prints, and what has to be different in it here.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, bail};
use tollgate_local::stack::{Envoy, envoy_config};

use crate::context::Context;

/// Nobody is there: port 9 discards.
const NO_UPSTREAM: &str = "127.0.0.1:9";
/// Every route of FlowMesh's that answers soon.
const ROUTE: &str = "route: {cluster: flowmesh, timeout: 60s}";
/// What answers in its place.
const ANSWER: &str = r#"direct_response: {status: 200, body: {inline_string: "{\"workflows\":[]}"}}"#;

/// Who authorizes.
#[derive(Debug, Clone, Copy)]
pub enum Authorizer {
    /// Nobody.
    None,
    /// Whoever serves there.
    At(SocketAddr),
}

/// What ships, for an ext_authz server at `authz`.
///
/// # Errors
/// When Tollgate does not print it.
pub async fn shipped(context: &Context, authz: SocketAddr) -> Result<String> {
    envoy_config(&context.program("tollgate")?, "127.0.0.1:0", "127.0.0.1:0", NO_UPSTREAM, &[&authz.to_string()]).await
}

/// An Envoy on one thread that answers by itself, once it is ready.
///
/// # Errors
/// When it does not start.
pub async fn start(context: &Context, authorizer: Authorizer) -> Result<(Envoy, tempfile::TempDir)> {
    let folder = context.folder()?;
    let address = match authorizer {
        Authorizer::None => SocketAddr::from(([127, 0, 0, 1], 9)),
        Authorizer::At(address) => address,
    };
    let mut bootstrap = answering(&shipped(context, address).await?)?;
    if matches!(authorizer, Authorizer::None) {
        bootstrap = without_authorization(&bootstrap)?;
    }
    let envoy = Envoy::start(&context.envoy()?, &bootstrap, folder.path(), 1, None).await?;
    if matches!(authorizer, Authorizer::At(_)) {
        envoy.wait_for_tollgate(Duration::from_secs(20)).await?;
    }
    Ok((envoy, folder))
}

/// Answers in FlowMesh's place. Such an answer is a local reply to Envoy, unlike FlowMesh's: so what words those goes, too.
fn answering(bootstrap: &str) -> Result<String> {
    if !bootstrap.contains(ROUTE) {
        bail!("the bootstrap has no `{ROUTE}` any more");
    }
    without(&bootstrap.replace(ROUTE, ANSWER), "          local_reply_config:", "          access_log:")
}

fn without_authorization(bootstrap: &str) -> Result<String> {
    let json_to_metadata = "          - name: envoy.filters.http.json_to_metadata";
    without(bootstrap, "          - name: envoy.filters.http.ext_authz", json_to_metadata)
}

/// Without the lines from the one that begins so to before the next that begins so.
fn without(text: &str, from: &str, before: &str) -> Result<String> {
    let line = |text: &str, start: &str| text.find(&format!("\n{start}")).map(|at| at + 1);
    let from_at = line(text, from).with_context(|| format!("the bootstrap has no line `{from}` any more"))?;
    let length =
        line(&text[from_at..], before).with_context(|| format!("the bootstrap has no line `{before}` any more"))?;
    Ok(format!("{}{}", &text[..from_at], &text[from_at + length..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEMPLATE: &str = include_str!("../../envoy/envoy.yaml");

    #[test]
    fn only_what_must_be_is_different_from_the_bootstrap_that_ships() {
        let answering = answering(TEMPLATE).unwrap();
        assert!(!answering.contains("cluster: flowmesh, timeout: 60s") && !answering.contains("local_reply_config"));
        let gone: Vec<_> = TEMPLATE.lines().filter(|line| !answering.contains(line)).map(str::trim).collect();
        let known =
            ["local_reply_config", "mappers:", "- filter", "expression", "headers_to_add", "body_format", ROUTE, "# "];
        for line in gone {
            assert!(known.iter().any(|known| line.starts_with(known)), "{line}");
        }
        let alone = without_authorization(&answering).unwrap();
        assert!(alone.len() < answering.len() && !alone.contains("envoy_grpc: {cluster_name: tollgate_authz}"));
        assert!(alone.contains("envoy.filters.http.router"));
    }

    #[test]
    fn a_bootstrap_in_which_the_place_is_not_found_is_an_error() {
        assert!(super::answering("").is_err());
        assert!(without("\nx\n", "x", "y").is_err());
        assert_eq!(without("a\nx\nb\ny\n", "x", "y").unwrap(), "a\ny\n");
    }
}
