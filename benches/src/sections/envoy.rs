//! Through Envoy: alone, with the floor, and with Tollgate.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result};
use http::{Method, Request};
use tollgate_local::stack::Envoy;

use crate::{
    bootstrap::{self, Authorizer},
    context::Context,
    figure::{Figure, ratios},
    paced::{self, Call, Load, Pace},
    section::{Measured, turns},
    servers::{Floor, Served, TOKEN},
    wrk,
};

/// A read that Tollgate wants no log entry of: so the authorization is all that differs.
pub const PATH: &str = "/api/v1/workflows";
/// What Envoy answers in FlowMesh's place: `{"workflows":[]}`.
const ANSWER: usize = 16;
/// Of HTTP/2, with at most a hundred requests under way on each.
const CONNECTIONS: usize = 8;

const ABOUT: &str = "Envoy on one thread, under the bootstrap that `tollgate envoy-config` prints, but that the route answers by itself \
(`direct_response`) in FlowMesh's place. Alone it has no ext_authz filter; with the floor and with Tollgate the filter is the shipped \
one, and they share the one core with Envoy, as on a small machine. A request is `GET /api/v1/workflows` with a token that Tollgate \
knows: Tollgate wants no log entry of it, so the way to the authorization is all that differs. *Added* is what a request takes longer \
than through Envoy alone; the goals are about the whole request, because a ratio of two such small differences would be noise, and one \
below zero would look like a goal that is met.";

struct Contender {
    name: &'static str,
    title: &'static str,
    envoy: Envoy,
    _folder: tempfile::TempDir,
    per_second: Vec<f64>,
    p50: Vec<f64>,
    p99: Vec<f64>,
}

/// See the module.
pub async fn run(context: &Context) -> Result<Measured> {
    let floor = Floor::start(context, &[]).await?;
    let served = Served::start(context).await?;
    let contender = async |name, title, authorizer| {
        let (envoy, folder) = bootstrap::start(context, authorizer).await?;
        let (per_second, p50, p99) = Default::default();
        anyhow::Ok(Contender { name, title, envoy, _folder: folder, per_second, p50, p99 })
    };
    let mut contenders = [
        contender("alone", "Envoy alone", Authorizer::None).await?,
        contender("floor", "Envoy with the floor", Authorizer::At(floor.address)).await?,
        contender("tollgate", "Envoy with Tollgate", Authorizer::At(served.address)).await?,
    ];
    let allowed = served.allowed().await?;
    throughput(context, &mut contenders).await?;
    let (rate, late) = latency(context, &mut contenders).await?;
    let asked = served.allowed().await? - allowed;
    for contender in &contenders {
        contender.envoy.stop().await?;
    }
    served.stop().await?;
    let note = format!("Tollgate let {asked:.0} requests through meanwhile; none was answered with anything but 200.");
    Ok(Measured {
        about: ABOUT.to_owned(),
        figures: figures(&contenders, rate),
        notes: vec![note, paced::lateness(&late)],
    })
}

async fn throughput(context: &Context, contenders: &mut [Contender; 3]) -> Result<()> {
    for round in 0..context.rounds {
        for at in turns(round, contenders.len()) {
            let contender = &mut contenders[at];
            context.progress("envoy", round, format_args!("as many as {} takes", contender.title));
            let seconds = if context.quick { 1 } else { 3 };
            let told = wrk::run(context, &wrk_arguments(contender.envoy.edge_url(), seconds)).await?;
            contender.per_second.push(told.per_second);
        }
    }
    Ok(())
}

/// At half of what Envoy with the floor could do; that rate, and how late the generator was.
async fn latency(context: &Context, contenders: &mut [Contender; 3]) -> Result<(f64, Vec<f64>)> {
    let half = Figure::new("", "", "", contenders[1].per_second.clone(), "").median() / 2.0;
    let rate = if context.quick { half.min(200.0) } else { half };
    let mut late = Vec::new();
    for round in 0..context.rounds {
        for at in turns(round, contenders.len()) {
            let contender = &mut contenders[at];
            context.progress("envoy", round, format_args!("how long {} takes at {rate:.0}/s", contender.title));
            let told = paced::run(load(context, contender.envoy.edge_url(), rate)?).await?;
            contender.p50.push(told.p50);
            contender.p99.push(told.p99);
            late.push(told.late);
        }
    }
    Ok((rate, late))
}

fn load(context: &Context, edge: &str, rate: f64) -> Result<Load> {
    let address: SocketAddr = edge.trim_start_matches("http://").parse().context("Envoy's address is none")?;
    let request = Request::builder()
        .method(Method::GET)
        .uri(format!("{edge}{PATH}"))
        .header("authorization", format!("Bearer {TOKEN}"))
        .body(())
        .context("no request")?;
    Ok(Load {
        address,
        connections: CONNECTIONS,
        pace: Pace::Rate(rate),
        warm_up: context.duration(Duration::from_millis(500)),
        duration: context.duration(Duration::from_secs(4)),
        answer: ANSWER,
        next: Box::new(move || Call { request: request.clone(), body: None }),
    })
}

fn wrk_arguments(edge: &str, seconds: u32) -> Vec<String> {
    let (seconds, header, url) =
        (format!("{seconds}s"), format!("authorization: Bearer {TOKEN}"), format!("{edge}{PATH}"));
    ["-t", "1", "-c", "32", "-d", &seconds, "--latency", "--timeout", "20s", "-H", &header, &url]
        .map(str::to_owned)
        .to_vec()
}

fn figures(contenders: &[Contender; 3], rate: f64) -> Vec<Figure> {
    let [alone, floor, tollgate] = contenders;
    let most =
        "`wrk -t 1 -c 32 -d 3s --latency -H 'authorization: Bearer TOKEN' http://127.0.0.1:PORT/api/v1/workflows`";
    let paced = format!(
        "`tollgate-benches --only envoy`: its own generator (`benches/src/paced.rs`), HTTP/2 over {CONNECTIONS} connections, {rate:.0} \
         requests a second, which is half of what Envoy with the floor can do, evenly spaced: below saturation, where a client's \
         wait is the work that is done for it and not the queue."
    );
    let mut figures = Vec::new();
    for contender in contenders {
        let (id, what) =
            (format!("envoy.rate.{}", contender.name), format!("requests per second through {}", contender.title));
        figures.push(Figure::new(&id, &what, "1/s", contender.per_second.clone(), most));
    }
    let rates = ratios(&tollgate.per_second, &floor.per_second);
    figures.push(Figure::new("envoy.rate_ratio", "requests per second, Tollgate / floor", "×", rates, most));
    for (name, title) in [("p50", "median"), ("p99", "99th percentile")] {
        let of = |contender: &Contender| if name == "p50" { contender.p50.clone() } else { contender.p99.clone() };
        let added = |contender: &Contender| -> Vec<f64> {
            of(contender).iter().zip(of(alone)).map(|(with, without)| with - without).collect()
        };
        let mut push = |id: String, what: String, unit: &str, samples| {
            figures.push(Figure::new(&id, &what, unit, samples, &paced));
        };
        for contender in contenders {
            push(
                format!("envoy.{name}.{}", contender.name),
                format!("{title} through {}", contender.title),
                "µs",
                of(contender),
            );
        }
        for contender in [floor, tollgate] {
            push(
                format!("envoy.added.{name}.{}", contender.name),
                format!("{title}, added with {}", contender.title),
                "µs",
                added(contender),
            );
        }
        push(
            format!("envoy.total.{name}_ratio"),
            format!("{title} of the whole request, Envoy with Tollgate / Envoy with the floor"),
            "×",
            ratios(&of(tollgate), &of(floor)),
        );
    }
    figures
}
