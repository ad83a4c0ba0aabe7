//! The stages of a Check and of a log entry, each by itself. `cargo bench -p tollgate-benches --bench stages`

#![expect(clippy::expect_used, reason = "nothing is measured of what is not there")]

use std::hint::black_box;

use bytes::Bytes;
use criterion::{Criterion, criterion_group, criterion_main};
use envoy_types::pb::envoy::service::accesslog::v3::StreamAccessLogsMessage as WholeLogs;
use envoy_types::pb::envoy::service::auth::v3::CheckRequest as WholeCheckRequest;
use futures_util::FutureExt as _;
use jiff::Timestamp;
use prost::Message as _;
use tollgate::{
    access_log::event,
    authz::{Seen, request, response},
    identity::TokenHash,
    wire::{CheckRequest, LogEntries, StreamAccessLogsMessage},
};
use tollgate_benches::{inside, servers::TOKEN};

fn check(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let _inside = runtime.enter();
    let (authz, _lum_id) = runtime.block_on(inside::authz()).expect("a token that is known");
    let sent = inside::poll().expect("what was captured");
    let request = CheckRequest::decode(sent.clone()).expect("a Check");
    let inquiry = request::parse(request.clone());
    let decide = || authz.decide(black_box(&inquiry), &mut Seen::default()).now_or_never().expect("from memory");
    let decision = decide();
    assert_eq!(decision.reason(), "allowed");

    let mut group = c.benchmark_group("check");
    group.bench_function("decode", |b| b.iter(|| request::parse(CheckRequest::decode(sent.clone()).expect("a Check"))));
    group.bench_function("decode_all", |b| b.iter(|| WholeCheckRequest::decode(sent.clone()).expect("a Check")));
    group.bench_function("hash", |b| b.iter(|| TokenHash::of(black_box(TOKEN))));
    group.bench_function("decide", |b| b.iter(decide));
    group.bench_function("render", |b| b.iter(|| response::render(black_box(&decision), &authz.stamp)));
    group.bench_function("whole", |b| {
        b.iter(|| {
            let request = CheckRequest::decode(sent.clone()).expect("a Check");
            authz.check(request).now_or_never().expect("from memory").parts().concat()
        });
    });
    group.finish();
}

fn log(c: &mut Criterion) {
    let now = Timestamp::now();
    let mut group = c.benchmark_group("log");
    for (name, message) in inside::LOGS {
        let message = Bytes::from_static(message);
        group.bench_function(name, |b| {
            b.iter(|| {
                let message = StreamAccessLogsMessage::decode(message.clone()).expect("a message");
                let Some(LogEntries::Http(logs)) = message.log_entries else { panic!("no HTTP") };
                logs.log_entry.iter().map(|entry| event::extract(entry, now)).collect::<Vec<_>>()
            });
        });
        group.bench_function(format!("{name}_decode_all"), |b| {
            b.iter(|| WholeLogs::decode(message.clone()).expect("a message"));
        });
    }
    group.finish();
}

criterion_group!(stages, check, log);
criterion_main!(stages);
