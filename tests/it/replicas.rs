//! Several Tollgates behind one Envoy.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tollgate_local::stack::{ALICE, Tollgate, free_port, wait_for};

use crate::harness::{Edge, SOON, answer, binary};
use crate::mtls::{Pki, flags, replace_envoy, settings};

const CLIENTS: usize = 16;

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
    // Without billing: a ledger has one process.
    let mut second = settings(dir.path()).to_vec();
    second.push(("LUM_ID_BASE_URL", edge.stack.lum_id.url()));
    second.push(("FLOWMESH_BASE_URL", edge.stack.flowmesh.url()));
    second.push(("TOLLGATE_GRPC_LISTEN", "127.0.0.1:0".to_owned()));
    second.push(("TOLLGATE_ADMIN_LISTEN", "127.0.0.1:0".to_owned()));
    let mut second = Tollgate::start(binary(), &second, None).await.expect("starts");
    // An address and a host name, which are then both looked up.
    let by_name = second.grpc().replace("127.0.0.1", "localhost");
    let mut flags = flags(dir.path());
    flags.extend(["--tollgate".to_owned(), first, "--tollgate".to_owned(), by_name]);
    replace_envoy(&mut edge, &flags).await;
    let healthy = async |wanted| {
        let stat = "cluster.tollgate_authz.membership_healthy";
        let seen = async || edge.stack.envoy.stat(stat).await.filter(|healthy| *healthy == wanted);
        wait_for(format!("{wanted} healthy Tollgates"), SOON, seen).await.expect("healthy");
    };
    healthy(2).await;

    let (done, answers) = (CancellationToken::new(), Arc::new(AtomicUsize::new(0)));
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let (done, answers) = (done.clone(), answers.clone());
        let request = edge.get("/api/v1/workflows").bearer_auth(ALICE.token);
        clients.spawn(async move {
            let mut failed = Vec::new();
            while !done.is_cancelled() {
                let answer = answer(request.try_clone().expect("no body")).await;
                answers.fetch_add(1, Ordering::Relaxed);
                failed.extend((answer.status != 200).then_some(answer));
            }
            failed
        });
    }
    let more = async |count: usize| {
        let wanted = answers.load(Ordering::Relaxed) + count;
        let seen = async || (answers.load(Ordering::Relaxed) >= wanted).then_some(());
        wait_for(format!("{count} more answers"), SOON, seen).await.expect("answered");
    };
    let asked = async |tollgate: &Tollgate| {
        let seen = async || tollgate.metric("tollgate_check_decisions_total").await.filter(|checks| *checks > 10.0);
        wait_for("a Tollgate to be asked", SOON, seen).await.expect("asked");
    };
    more(200).await;
    asked(&edge.stack.tollgate).await;
    asked(&second).await;
    second.kill_hard().await.expect("killed");
    more(200).await;
    healthy(1).await;
    more(200).await;
    second.restart().await.expect("restarted");
    healthy(2).await;
    asked(&second).await;
    done.cancel();
    let failed: Vec<_> = clients.join_all().await.into_iter().flatten().collect();
    assert!(failed.is_empty(), "{failed:#?}");
    edge.finish_unbilled().await;
}
