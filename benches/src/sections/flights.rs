//! What many who bring one unknown token at once cost lum.id, and wait for.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use tokio::task::JoinSet;
use tollgate::{
    app::Upstreams,
    config::{Config, Options},
    identity::{Identity, TokenHash},
    telemetry::Metrics,
};

use crate::{
    checks::{self, Checks},
    context::Context,
    figure::Figure,
    peers::{FlowMesh, LumId},
    percentile::percentile,
    section::Measured,
    served::{self, Around, count},
};

/// lum.id's own time: long enough for all to have come meanwhile.
const DELAY: Duration = Duration::from_secs(2);
const DELAY_QUICK: Duration = Duration::from_millis(300);
/// And where nothing is in between.
const DELAY_INSIDE: Duration = Duration::from_millis(500);
/// 10 000 over gRPC come over so many connections.
const CONNECTIONS: u64 = 10;

/// Measures.
pub async fn run(context: &Context) -> Result<Measured> {
    let (callers, delay): (u64, _) = if context.quick { (200, DELAY_QUICK) } else { (10_000, DELAY) };
    let (mut asked_inside, mut late_inside) = (Vec::new(), Vec::new());
    let (mut asked, mut late, mut warm) = (Vec::new(), Vec::new(), Vec::new());
    let checks = Checks::captured(&context.root)?;
    let flowmesh = FlowMesh::start(0, 1).await?;
    for round in 0..context.rounds.min(3) {
        context.progress("flights", round, "many with one token");
        let (calls, answered) = inside(callers, round as u64).await?;
        asked_inside.push(calls);
        late_inside.push((p99(&answered) - ms(DELAY_INSIDE)).max(0.0));

        let lum_id = LumId::start(delay).await?;
        let around = Around { lum_id: Some(lum_id.url()), flowmesh: Some(flowmesh.url()), runmesh: None };
        let tollgate = served::tollgate(context, &around, None).await?;
        let answered = checks::burst(tollgate.grpc(), &checks, callers, CONNECTIONS, 1).await?;
        asked.push(count(lum_id.asked()));
        late.push((p99(&answered) - ms(delay)).max(0.0));
        let answered = checks::burst(tollgate.grpc(), &checks, callers, CONNECTIONS, 1).await?;
        warm.push(p99(&answered));
        ensure!(lum_id.asked() >= 1, "lum.id was not asked");
        tollgate.kill_hard().await?;
    }
    let how_inside = format!(
        "{callers} tasks call `Identity::resolve` in this process; lum.id takes {} ms; from the first call to each answer",
        DELAY_INSIDE.as_millis()
    );
    let how = format!(
        "{callers} Checks at once over {CONNECTIONS} connections; lum.id takes {} ms; from the first one sent to each answer",
        delay.as_millis()
    );
    let figure = Figure::new;
    Ok(Measured {
        about: format!("{callers} callers bring one token of which nothing is known yet, all at once."),
        figures: vec![
            figure("flights.introspections", "Introspections for all of them, over gRPC", "", asked, &how),
            figure(
                "flights.introspections_inside",
                "Introspections for all of them, in one process",
                "",
                asked_inside,
                &how_inside,
            ),
            figure(
                "flights.p99_inside",
                "99 % have their answer so long after lum.id gave it, in one process",
                "ms",
                late_inside,
                &how_inside,
            ),
            figure("flights.p99", "99 % have their answer so long after lum.id gave it, over gRPC", "ms", late, &how),
            figure(
                "flights.p99_known",
                "99 % have their answer so long after the first one asked, the token being known",
                "ms",
                warm,
                &how,
            ),
        ],
        notes: vec![format!(
            "Over gRPC {callers} answers have to be written and read after lum.id's, by one core each: the last figure is what \
             that many Checks take when nobody is waited for, and there is no way to be faster."
        )],
    })
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// What 99 % took at most, in ms.
fn p99(answered: &[Duration]) -> f64 {
    let mut all: Vec<f64> = answered.iter().copied().map(ms).collect();
    all.sort_by(f64::total_cmp);
    percentile(&all, 0.99)
}

/// Introspections for so many calls of `resolve` at once, and how long after the first of them each came back.
async fn inside(callers: u64, round: u64) -> Result<(f64, Vec<Duration>)> {
    let lum_id = LumId::start(DELAY_INSIDE).await?;
    let options = Options { lum_id_base_url: Some(lum_id.url()), ..Options::default() };
    let config = Config::parse(options).map_err(|error| anyhow!("{error}"))?;
    let metrics = Metrics::register(&mut prometheus_client::registry::Registry::default());
    let identity = Identity::new(&config, Upstreams::new(&config)?.lum_id, metrics);
    let token = Checks::token(round);
    let mut calls = JoinSet::new();
    let begun = Instant::now();
    for _ in 0..callers {
        let (identity, token) = (identity.clone(), token.clone());
        calls.spawn(async move {
            let resolved = identity.resolve(&token, TokenHash::of(&token), "127.0.0.1").await;
            resolved.answer.map(|_| begun.elapsed())
        });
    }
    let mut answered = Vec::new();
    while let Some(call) = calls.join_next().await {
        answered.push(call??);
    }
    Ok((count(lum_id.asked()), answered))
}
