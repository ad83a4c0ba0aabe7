//! What a Check out of memory allocates, counted.

use allocation_counter::measure;
use futures_util::FutureExt as _;
use prost::Message as _;
use tollgate::{
    authz::{Seen, request},
    wire::CheckRequest,
};
use tollgate_benches::inside;

/// Enough for what is done once in a while, like a cache's upkeep, to show.
const TIMES: u64 = 10_000;

#[tokio::test]
async fn hashing_a_token_finding_it_and_deciding_allocate_nothing_that_is_not_part_of_the_answer() {
    let (authz, _lum_id) = inside::authz().await.expect("a token that is known");
    let request = CheckRequest::decode(inside::poll().expect("what was captured")).expect("a Check");
    let inquiry = request::parse(request);
    let decide = || authz.decide(&inquiry, &mut Seen::default()).now_or_never().expect("out of memory").reason();
    assert_eq!(decide(), "allowed");
    let counted = measure(|| (0..TIMES).for_each(|_| assert_eq!(decide(), "allowed")));
    assert!(counted.count_total <= TIMES, "{} allocations in {TIMES} decisions", counted.count_total);
}

#[tokio::test]
async fn a_check_out_of_memory_allocates_a_dozen_times_at_most() {
    let (authz, _lum_id) = inside::authz().await.expect("a token that is known");
    let sent = inside::poll().expect("what was captured");
    let check = || {
        let request = CheckRequest::decode(sent.clone()).expect("a Check");
        authz.check(request).now_or_never().expect("out of memory").parts().iter().map(bytes::Bytes::len).sum::<usize>()
    };
    let length = check();
    let counted = measure(|| (0..TIMES).for_each(|_| assert_eq!(check(), length)));
    assert!(counted.count_total <= 12 * TIMES, "{} allocations in {TIMES} Checks", counted.count_total);
}
