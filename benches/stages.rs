//! The stages of a Check and of a log entry, each by itself. `cargo bench -p tollgate-benches --bench stages`

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use envoy_types::pb::envoy::data::accesslog::v3::HttpAccessLogEntry;
use envoy_types::pb::envoy::service::auth::v3::CheckRequest as WholeCheckRequest;
use futures_util::FutureExt as _;
use jiff::Timestamp;
use prost::Message as _;
use tollgate::{
    access_log::event,
    authz::{Seen, request, response},
    identity::TokenHash,
    wire::{CheckRequest, HttpLogEntry},
};
use tollgate_benches::{entries, inside, message, servers::TOKEN};
use tollgate_local::{cast, stack::ALICE};

fn check(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let _inside = runtime.enter();
    let lum_id = runtime.block_on(cast::lum_id("127.0.0.1:0")).expect("a stand-in");
    let authz = runtime.block_on(inside::authz(&lum_id.url(), ALICE.token)).expect("a token that is known");
    let sent = message::request(message::TASK).expect("what was captured").encode_to_vec();
    let sent = bytes::Bytes::from(sent);
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
    for (name, entry) in entries::captured() {
        let entry = bytes::Bytes::from(entry);
        group.bench_function(name, |b| {
            b.iter(|| event::extract(&HttpLogEntry::decode(entry.clone()).expect("an entry"), now));
        });
        group.bench_function(format!("{name}_decode_all"), |b| {
            b.iter(|| HttpAccessLogEntry::decode(entry.clone()).expect("an entry"));
        });
    }
    group.finish();
}

criterion_group!(stages, check, log);
criterion_main!(stages);
