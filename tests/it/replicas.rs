//! Several Tollgates behind one Envoy.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tollgate_local::stack::{ALICE, Tollgate, free_port, wait_for};

use crate::harness::{Answer, Edge, NameServer, SOON, answer, binary};
use crate::mtls::{Pki, flags, replace_envoy, replace_envoy_with, settings};

const CLIENTS: usize = 16;
/// A Tollgate that hangs has this long to answer Envoy's ping, which comes every 3 s, and the machine a moment for the rest.
const CUT_OFF: Duration = Duration::from_secs(3 + 2 + 1);

/// People who read, one request after the other, until they are told to stop.
struct Readers {
    done: CancellationToken,
    answers: Arc<AtomicUsize>,
    /// In milliseconds, of those that began since it was last looked at.
    slowest: Arc<AtomicU64>,
    /// And of all.
    slowest_of_all: Arc<AtomicU64>,
    looked_at: Arc<Mutex<Instant>>,
    clients: JoinSet<Vec<Answer>>,
}

impl Readers {
    fn start(edge: &Edge) -> Self {
        let mut readers = Self {
            done: CancellationToken::new(),
            answers: Arc::default(),
            slowest: Arc::default(),
            slowest_of_all: Arc::default(),
            looked_at: Arc::new(Mutex::new(Instant::now())),
            clients: JoinSet::new(),
        };
        for _ in 0..CLIENTS {
            let (done, answers) = (readers.done.clone(), readers.answers.clone());
            let (slowest, of_all) = (readers.slowest.clone(), readers.slowest_of_all.clone());
            let looked_at = readers.looked_at.clone();
            let request = edge.get("/api/v1/workflows").bearer_auth(ALICE.token);
            readers.clients.spawn(async move {
                let mut failed = Vec::new();
                while !done.is_cancelled() {
                    let asked = Instant::now();
                    let answer = answer(request.try_clone().expect("no body")).await;
                    let took = asked.elapsed().as_millis().try_into().expect("few");
                    of_all.fetch_max(took, Ordering::Relaxed);
                    if asked >= *looked_at.lock().expect("not poisoned") {
                        slowest.fetch_max(took, Ordering::Relaxed);
                    }
                    answers.fetch_add(1, Ordering::Relaxed);
                    failed.extend((answer.status != 200).then_some(answer));
                }
                failed
            });
        }
        readers
    }

    /// Waits for so many more answers.
    async fn more(&self, count: usize) {
        let wanted = self.answers.load(Ordering::Relaxed) + count;
        let seen = async || (self.answers.load(Ordering::Relaxed) >= wanted).then_some(());
        wait_for(format!("{count} more answers"), SOON, seen).await.expect("answered");
    }

    /// How long the slowest request took of those that began since this was last asked.
    fn slowest(&self) -> Duration {
        *self.looked_at.lock().expect("not poisoned") = Instant::now();
        Duration::from_millis(self.slowest.swap(0, Ordering::Relaxed))
    }

    fn slowest_of_all(&self) -> Duration {
        Duration::from_millis(self.slowest_of_all.load(Ordering::Relaxed))
    }

    async fn finish(self) {
        self.done.cancel();
        let failed: Vec<_> = self.clients.join_all().await.into_iter().flatten().collect();
        assert!(failed.is_empty(), "{failed:#?}");
    }
}

/// Waits until a figure of Envoy's cluster for Checks is this one.
async fn cluster(edge: &Edge, figure: &str, wanted: u64) {
    let stat = format!("cluster.tollgate_authz.{figure}");
    let seen = async || edge.stack.envoy.stat(&stat).await.filter(|seen| *seen == wanted);
    wait_for(format!("{wanted} of {stat}"), SOON, seen).await.expect("seen");
}

async fn healthy(edge: &Edge, wanted: u64) {
    cluster(edge, "membership_healthy", wanted).await;
}

async fn checks(tollgate: &Tollgate) -> f64 {
    tollgate.metric("tollgate_check_decisions_total").await.unwrap_or_default()
}

/// Waits until a Tollgate has decided more Checks than these.
async fn asked(tollgate: &Tollgate, before: f64) {
    let seen = async || tollgate.metric("tollgate_check_decisions_total").await.filter(|now| *now > before + 10.0);
    wait_for("a Tollgate to be asked", SOON, seen).await.expect("asked");
}

/// One without billing: a ledger in a file has one process.
async fn unbilled(edge: &Edge, listen: &str, more: &[(&'static str, String)]) -> Tollgate {
    let mut settings = more.to_vec();
    settings.push(("LUM_ID_BASE_URL", edge.stack.lum_id.url()));
    settings.push(("FLOWMESH_BASE_URL", edge.stack.flowmesh.url()));
    settings.push(("TOLLGATE_GRPC_LISTEN", listen.to_owned()));
    settings.push(("TOLLGATE_ADMIN_LISTEN", "127.0.0.1:0".to_owned()));
    Tollgate::start(binary(), &settings, None).await.expect("starts")
}

#[tokio::test]
async fn one_of_two_tollgates_is_killed_under_load_and_no_request_fails() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let _pki = Pki::write(dir.path());
    let mut edge = Edge::start().await;
    edge.stack.tollgate.kill_hard().await.expect("killed");
    let first = format!("127.0.0.1:{}", free_port().expect("a port"));
    edge.stack.tollgate.set("TOLLGATE_GRPC_LISTEN", &first);
    for (name, value) in settings(dir.path()) {
        edge.stack.tollgate.set(name, &value);
    }
    edge.stack.tollgate.restart().await.expect("restarted");
    let mut second = unbilled(&edge, "127.0.0.1:0", &settings(dir.path())).await;
    // An address and a host name, which are then both looked up.
    let by_name = second.grpc().replace("127.0.0.1", "localhost");
    let mut flags = flags(dir.path());
    flags.extend(["--tollgate".to_owned(), first, "--tollgate".to_owned(), by_name]);
    replace_envoy(&mut edge, &flags).await;
    healthy(&edge, 2).await;

    let readers = Readers::start(&edge);
    readers.more(200).await;
    asked(&edge.stack.tollgate, 0.0).await;
    asked(&second, 0.0).await;
    second.kill_hard().await.expect("killed");
    readers.more(200).await;
    healthy(&edge, 1).await;
    readers.more(200).await;
    second.restart().await.expect("restarted");
    healthy(&edge, 2).await;
    asked(&second, 0.0).await;
    readers.finish().await;
    edge.finish_unbilled().await;
}

#[tokio::test]
async fn three_tollgates_share_the_checks_and_one_that_hangs_keeps_nobody_for_long() {
    let mut edge = Edge::start().await;
    let mut tollgates = Vec::new();
    for _ in 0..3 {
        tollgates.push(unbilled(&edge, "127.0.0.1:0", &[]).await);
    }
    let flags = tollgates.iter().flat_map(|tollgate| ["--tollgate".to_owned(), tollgate.grpc().to_owned()]);
    replace_envoy(&mut edge, &flags.collect::<Vec<_>>()).await;
    healthy(&edge, 3).await;

    let readers = Readers::start(&edge);
    readers.more(600).await;
    let mut decided = Vec::new();
    for tollgate in &tollgates {
        decided.push(checks(tollgate).await);
    }
    // Each of Envoy's workers asks one after the other.
    let share = decided.iter().sum::<f64>() / 5.0;
    assert!(decided.iter().all(|checks| *checks >= share), "{decided:?}");

    tollgates[0].process().freeze().expect("frozen");
    healthy(&edge, 2).await;
    // It is asked no more, and again as soon as it answers. Those that it was asked before may still wait.
    readers.slowest();
    readers.more(200).await;
    let slowest = readers.slowest();
    assert!(slowest < Duration::from_secs(1), "a request took {slowest:?}");
    tollgates[0].process().thaw().expect("thawed");
    healthy(&edge, 3).await;
    asked(&tollgates[0], checks(&tollgates[0]).await).await;
    let slowest = readers.slowest_of_all();
    assert!(slowest < CUT_OFF, "a request took {slowest:?}");
    readers.finish().await;
    edge.finish_unbilled().await;
}

/// As a headless Service of Kubernetes has it.
#[tokio::test]
async fn tollgates_come_and_go_under_one_name_and_those_that_are_known_outlive_its_server() {
    let mut edge = Edge::start().await;
    let port = free_port().expect("a port");
    let addresses = [1, 2, 3].map(|last| Ipv4Addr::new(127, 0, 0, last));
    let mut tollgates = Vec::new();
    for address in addresses {
        tollgates.push(unbilled(&edge, &format!("{address}:{port}"), &[]).await);
    }
    let names = NameServer::start(&addresses[..2]).await;
    let flags = ["--tollgate".to_owned(), format!("tollgate.example.:{port}")];
    replace_envoy_with(&mut edge, &flags, &names.in_bootstrap()).await;
    healthy(&edge, 2).await;

    let readers = Readers::start(&edge);
    readers.more(200).await;
    names.say(&addresses);
    healthy(&edge, 3).await;
    asked(&tollgates[2], 0.0).await;

    names.fail();
    let failures = async || edge.stack.envoy.stat("cluster.tollgate_authz.update_failure").await.filter(|n| *n >= 2);
    wait_for("two questions to fail", SOON, failures).await.expect("failed");
    cluster(&edge, "membership_healthy", 3).await;
    readers.more(200).await;

    // One that the name has lost is asked for as long as it answers, so that nothing that it holds is cut off.
    names.say(&addresses[1..]);
    let updated = edge.stack.envoy.stat("cluster.tollgate_authz.update_success").await.unwrap_or_default();
    let later = async || edge.stack.envoy.stat("cluster.tollgate_authz.update_success").await.filter(|n| *n > updated);
    wait_for("the name to be looked up again", SOON, later).await.expect("looked up");
    cluster(&edge, "membership_total", 3).await;
    tollgates[0].kill_hard().await.expect("killed");
    cluster(&edge, "membership_total", 2).await;
    readers.more(200).await;
    readers.finish().await;
    edge.finish_unbilled().await;
}
