//! What a user has today, beside Envoy with Tollgate.

use std::{net::SocketAddr, path::Path};

use anyhow::{Context as _, Result, bail};
use tokio::process::Command;
use tollgate_local::stack::{Process, START_LIMIT, http_client, wait_for};

use super::envoy::PATH;
use crate::{
    bootstrap::{self, Authorizer},
    context::Context,
    figure::{Figure, ratios},
    section::{Measured, turns},
    servers::{Served, TOKEN, address, fresh_prefix},
    wrk,
};

/// Where `scripts/fetch-predecessor` puts its Python.
const PACKAGES: &str = ".tools/predecessor";

const ABOUT: &str = "What a user has today, in its essence (`benches/predecessor/app.py`): a FastAPI server in one uvicorn worker that \
authenticates in its own process by the same rules, remembers an active token for 60 s, and makes a new HTTP client for each token \
that it does not know. Beside it the same server without authentication, and Envoy with Tollgate, where Envoy answers by itself in \
FlowMesh's place. Each has one core; Envoy and Tollgate share theirs. What is compared is a trivial `GET /api/v1/workflows` over \
HTTP/1.1. The difference between the first two is what authentication costs inside that server; the third is all that stands in \
front of a FlowMesh without authentication, whose own work, such as that of the second, comes on top: that sum is shown, too.";

struct Contender {
    name: &'static str,
    title: &'static str,
    address: SocketAddr,
    /// Whether an unknown token costs it anything.
    authenticates: bool,
    cached: Vec<wrk::Told>,
    alone: Vec<wrk::Told>,
    cold: Vec<wrk::Told>,
}

/// See the module.
pub async fn run(context: &Context) -> Result<Measured> {
    let served = Served::start(context).await?;
    let (envoy, _folder) = bootstrap::start(context, Authorizer::At(served.address)).await?;
    let (with, at) = app(context, &[("LUM_ID_BASE_URL", &served.lum_id.url())]).await?;
    let (without, at_without) = app(context, &[("AUTHENTICATION", "off")]).await?;
    let edge = envoy.edge_url().trim_start_matches("http://").parse().context("Envoy's address is none")?;
    let contender = |name, title, address, authenticates| {
        let (cached, alone, cold) = Default::default();
        Contender { name, title, address, authenticates, cached, alone, cold }
    };
    let mut contenders = [
        contender("app", "the predecessor", at, true),
        contender("open", "the predecessor without authentication", at_without, false),
        contender("tollgate", "Envoy with Tollgate", edge, true),
    ];
    rules_are_kept(&contenders).await?;
    for round in 0..context.rounds {
        for at in turns(round, contenders.len()) {
            measure(context, round, &mut contenders[at]).await?;
        }
    }
    with.kill_hard().await?;
    without.kill_hard().await?;
    envoy.stop().await?;
    served.stop().await?;
    let notes = vec![
        "With one connection nobody waits for anybody else: that is how long a request takes. With sixteen the server is saturated: \
         that is how many it can do."
            .to_owned(),
        "Most of what a new HTTP client costs the predecessor is reading the CA certificates, which httpx does for each, and which \
         lum.id, being https, would want."
            .to_owned(),
    ];
    Ok(Measured { about: ABOUT.to_owned(), figures: figures(&contenders), notes })
}

/// The app on a free port.
async fn app(context: &Context, environment: &[(&str, &str)]) -> Result<(Process, SocketAddr)> {
    let packages = context.root.join(PACKAGES);
    if !packages.join("uvicorn").is_dir() {
        bail!("there is no uvicorn in {PACKAGES}: `scripts/fetch-predecessor` brings it");
    }
    let mut command = Command::new(context.on_server_core(Path::new("python3"))?);
    command
        .args(
            "-m uvicorn app:app --app-dir benches/predecessor --host 127.0.0.1 --port 0 --workers 1 --no-access-log"
                .split(' '),
        )
        .args(["--loop", "uvloop", "--http", "httptools"])
        .current_dir(&context.root)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("PYTHONPATH", packages)
        .envs(environment.iter().copied());
    let process = Process::start("the predecessor", command, None)?;
    let at = address(&process, "running on http://").await?;
    Ok((process, at))
}

/// A good token is let in by all, and a bad one refused by those who look.
async fn rules_are_kept(contenders: &[Contender]) -> Result<()> {
    let http = http_client()?;
    for Contender { title, address, authenticates, .. } in contenders {
        let status = async |token: &str| {
            let answer = http.get(format!("http://{address}{PATH}")).bearer_auth(token).send().await.ok()?;
            Some(answer.status().as_u16())
        };
        let good = wait_for(format!("{title} to answer"), START_LIMIT, async || status(TOKEN).await).await?;
        let bad = status("nobody's").await;
        if good != 200 || bad != Some(if *authenticates { 401 } else { 200 }) {
            bail!("{title} answers a good token with {good} and a bad one with {bad:?}");
        }
    }
    Ok(())
}

async fn measure(context: &Context, round: usize, contender: &mut Contender) -> Result<()> {
    let url = format!("http://{}{PATH}", contender.address);
    let duration = if context.quick { "1s" } else { "2s" };
    let header = format!("authorization: Bearer {TOKEN}");
    let common = |connections: &str, rest: &[&str]| -> Vec<String> {
        // Longer than wrk waits by itself: on a busy machine a new client may take seconds.
        let words = ["-t", "1", "-c", connections, "-d", duration, "--latency", "--timeout", "20s"];
        words.iter().chain(rest).map(|word| (*word).to_owned()).collect()
    };
    let known = |connections| common(connections, &["-H", &header, &url]);
    context.progress("predecessor", round, contender.title);
    contender.cached.push(wrk::run(context, &known("16")).await?);
    contender.alone.push(wrk::run(context, &known("1")).await?);
    if contender.authenticates {
        context.progress("predecessor", round, format_args!("{}, tokens never seen", contender.title));
        let script = context.root.join("benches/data/cold.lua").display().to_string();
        // Another prefix for each run: each counts from one.
        let prefix = fresh_prefix(round as u64 + 1);
        // In the short form so few that each is answered in time.
        let cold = common(if context.quick { "2" } else { "16" }, &["-s", &script, &url, "--", &prefix]);
        contender.cold.push(wrk::run(context, &cold).await?);
    }
    Ok(())
}

fn figures(contenders: &[Contender; 3]) -> Vec<Figure> {
    let how = |connections, more: &str| {
        format!("`wrk -t 1 -c {connections} -d 2s --latency {more} http://127.0.0.1:PORT/api/v1/workflows`")
    };
    let known = "-H 'authorization: Bearer TOKEN'";
    let of = |told: &[wrk::Told], what: fn(&wrk::Told) -> f64| told.iter().map(what).collect::<Vec<_>>();
    let (saturated, alone) = (how(16, known), how(1, known));
    let cold = how(16, "-s benches/data/cold.lua") + ", with a new token for each request.";
    let mut figures = Vec::new();
    let mut push = |id: String, what: String, unit: &str, samples: Vec<f64>, how: &str| {
        figures.push(Figure::new(&format!("predecessor.{id}"), &what, unit, samples, how));
    };
    for Contender { name, title, cached, .. } in contenders {
        push(
            format!("cached.rate.{name}"),
            format!("requests per second of {title}"),
            "1/s",
            of(cached, |told| told.per_second),
            &saturated,
        );
    }
    let rate = |at: usize| of(&contenders[at].cached, |told| told.per_second);
    for (at, name) in [(0, "app"), (1, "open")] {
        let what = format!("requests per second, Envoy with Tollgate / {}", contenders[at].title);
        push(format!("cached.rate_ratio.{name}"), what, "×", ratios(&rate(2), &rate(at)), &saturated);
    }
    for Contender { name, title, alone: told, .. } in contenders {
        push(format!("cached.p50.{name}"), format!("median of {title}"), "µs", of(told, |told| told.p50), &alone);
        push(
            format!("cached.p99.{name}"),
            format!("99th percentile of {title}"),
            "µs",
            of(told, |told| told.p99),
            &alone,
        );
    }
    let p50 = |at: usize| of(&contenders[at].alone, |told| told.p50);
    let sum: Vec<f64> = p50(1).iter().zip(p50(2)).map(|(open, edge)| open + edge).collect();
    let what = "median by way of Envoy with Tollgate to the one without authentication (the sum) / of the predecessor"
        .to_owned();
    push("cached.p50_sum_ratio".to_owned(), what, "×", ratios(&sum, &p50(0)), &alone);
    for Contender { name, title, cold: told, authenticates, .. } in contenders {
        if *authenticates {
            push(
                format!("cold.rate.{name}"),
                format!("requests per second of {title}"),
                "1/s",
                of(told, |told| told.per_second),
                &cold,
            );
            push(format!("cold.p50.{name}"), format!("median of {title}"), "µs", of(told, |told| told.p50), &cold);
            push(
                format!("cold.p99.{name}"),
                format!("99th percentile of {title}"),
                "µs",
                of(told, |told| told.p99),
                &cold,
            );
        }
    }
    let cold_rate = |at: usize| of(&contenders[at].cold, |told| told.per_second);
    let both = ratios(&cold_rate(2), &cold_rate(0));
    let what = "requests per second with tokens never seen, Envoy with Tollgate / the predecessor".to_owned();
    push("cold.rate_ratio".to_owned(), what, "×", both, &cold);
    figures
}
