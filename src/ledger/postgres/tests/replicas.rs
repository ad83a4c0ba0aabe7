//! Replicas that know of each other.

use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

use serde_json::json;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use wiremock::{Mock, MockServer, ResponseTemplate};

use super::*;
use crate::circuit::Circuit;
use crate::config::{BaseUrl, Config, Options};
use crate::drive::{News, Worker as _};
use crate::identity::{Identity, Purge, TokenHash};
use crate::ledger::duty::Duty;
use crate::ledger::unrecorded::Unrecorded;
use crate::settlement::workflows::Sweeper;
use crate::telemetry::Metrics;
use crate::upstream::Http;
use crate::upstream::flowmesh::FlowMesh;
use crate::upstream::lumid::LumId;

const SOON: Duration = Duration::from_secs(20);
const NEVER: Duration = Duration::from_hours(1);

/// A running replica.
struct Running {
    replica: Replica,
    duty: Duty,
    unrecorded: Unrecorded,
    identity: Identity,
    lum_id: MockServer,
    stop: CancellationToken,
    task: JoinHandle<Result<(), crate::lifecycle::TaskError>>,
}

impl Running {
    async fn start(database: &config::Postgres, name: &str, lost_after: Duration, state: Option<&Path>) -> Self {
        let open = |folder: &Path| Unrecorded::open(&folder.join(name), Timestamp::now());
        let unrecorded = state.map(open).unwrap_or_default();
        let lum_id = MockServer::start().await;
        let active = ResponseTemplate::new(200).set_body_json(json!({"active": true, "sub": "user-1"}));
        Mock::given(wiremock::matchers::any()).respond_with(active).mount(&lum_id).await;
        let base = BaseUrl::of_test(&lum_id.uri());
        let config = Config::parse(Options::default()).expect("valid");
        let client = LumId::new(Http::new(&base, SOON).expect("client"), &base);
        let identity = Identity::new(&config, client, Metrics::unread());
        let mut database = database.clone();
        name.clone_into(&mut database.replica);
        let replica = Replica::new(&database, unrecorded.clone(), lost_after, (Figures::default(), Metrics::unread()));
        let (duty, stop) = (replica.duty(), CancellationToken::new());
        let task = tokio::spawn(replica.clone().keep(identity.clone(), stop.clone()));
        Self { replica, duty, unrecorded, identity, lum_id, stop, task }
    }

    async fn stopped(self) {
        self.stop.cancel();
        self.task.await.expect("no panic").expect("an orderly end");
        self.replica.leave().await;
    }

    /// Ends without a word.
    async fn killed(self) {
        self.task.abort();
        let _ = self.task.await;
    }

    async fn resolve(&self, token: &str) {
        let resolved = self.identity.resolve(token, TokenHash::of(token), "127.0.0.1").await;
        assert_eq!(resolved.answer.expect("active").principal.id, "user-1");
    }

    async fn asked(&self) -> usize {
        self.lum_id.received_requests().await.expect("recorded").len()
    }
}

async fn until(what: &str, mut reached: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !reached().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, wait).await.unwrap_or_else(|_| panic!("never: {what}"));
}

async fn known(fixture: &Fixture<PostgresStore>) -> Vec<String> {
    let mut lent = fixture.store.ledger.store.get().await.expect("a connection");
    let names =
        sqlx::query_scalar("SELECT name FROM replicas ORDER BY name").fetch_all(&mut *lent).await.expect("read");
    lent.give_back();
    names
}

async fn gaps(fixture: &Fixture<PostgresStore>) -> i64 {
    fixture.store.ledger.number("SELECT COUNT(*) FROM gaps").await.expect("read").expect("a number")
}

async fn fixture() -> Option<Fixture<PostgresStore>> {
    if PostgresStore::is_there() { Some(Fixture::new().await) } else { None }
}

/// Two, of which the first has the duty.
async fn two_of(fixture: &Fixture<PostgresStore>) -> (Running, Running) {
    let database = &fixture.store.database;
    let first = Running::start(database, "a", NEVER, None).await;
    until("the first has the duty", async || first.duty.is_mine()).await;
    let second = Running::start(database, "b", NEVER, None).await;
    until("both are known", async || known(fixture).await == ["a", "b"]).await;
    (first, second)
}

#[tokio::test]
async fn one_of_them_has_the_duty_and_it_moves_at_once_when_that_one_stops() {
    let Some(fixture) = fixture().await else { return };
    let (first, second) = two_of(&fixture).await;
    assert!(first.duty.is_mine() && !second.duty.is_mine());
    first.stopped().await;
    assert_eq!(known(&fixture).await, ["b"], "who stops in order leaves nothing");
    until("the second has it", async || second.duty.is_mine()).await;
    assert_eq!(gaps(&fixture).await, 0);
    second.stopped().await;
    assert_eq!(known(&fixture).await, [""; 0]);
}

#[tokio::test]
async fn the_duty_of_one_that_was_killed_moves_and_never_two_have_it() {
    let Some(fixture) = fixture().await else { return };
    let database = &fixture.store.database;
    let first = Running::start(database, "a", NEVER, None).await;
    until("the first has the duty", async || first.duty.is_mine()).await;
    let second = Running::start(database, "b", NEVER, None).await;
    let duty = first.duty.clone();
    first.killed().await;
    until("the second has it", async || {
        let (before, now) = (duty.is_mine(), second.duty.is_mine());
        assert!(!(before && now), "both have it");
        now
    })
    .await;
    second.stopped().await;
}

#[tokio::test]
async fn one_that_cannot_do_what_one_does_for_all_leaves_it_to_another() {
    let Some(fixture) = fixture().await else { return };
    let (first, second) = two_of(&fixture).await;
    first.duty.leave();
    until("it is the second one's", async || second.duty.is_mine()).await;
    assert!(!first.duty.is_mine());
    // And would come back, if that one could not either.
    second.duty.leave();
    until("it is nobody's", async || !second.duty.is_mine()).await;
    first.stopped().await;
    second.stopped().await;
}

#[tokio::test]
async fn one_whose_clock_is_wrong_keeps_owners_from_being_looked_for_and_leaves_a_gap() {
    let Some(fixture) = fixture().await else { return };
    // Of the two it is the database's that is wrong here, which is all the same to a replica.
    fixture
        .store
        .execute("DO $$ BEGIN EXECUTE 'ALTER DATABASE ' || current_database() || ' SET search_path = public, pg_catalog'; END $$")
        .await;
    let set = async |ahead: &'static str| {
        fixture.store.execute(ahead).await;
    };
    let right = "CREATE OR REPLACE FUNCTION public.clock_timestamp() RETURNS timestamptz LANGUAGE sql
                 AS $$ SELECT pg_catalog.clock_timestamp() $$";
    let wrong = "CREATE OR REPLACE FUNCTION public.clock_timestamp() RETURNS timestamptz LANGUAGE sql
                 AS $$ SELECT pg_catalog.clock_timestamp() - interval '8 seconds' $$";
    set(right).await;
    let first = Running::start(&fixture.store.database, "a", NEVER, None).await;
    let ledger: Arc<dyn Ledger> = Arc::new(PostgresLedger::open(&fixture.store.database, at(0)).await.expect("opens"));
    let noting = tokio::spawn(first.unrecorded.clone().keep(ledger.clone(), first.stop.clone()));
    let recorded = async || ledger.recorded_until().await.expect("read");
    let begun = Timestamp::now();
    until("all is well", async || known(&fixture).await == ["a"] && recorded().await > begun).await;
    set(wrong).await;
    until("it is noticed", async || first.unrecorded.is_uncertain()).await;
    let noticed = Timestamp::now();
    until("the others know, and wait", async || recorded().await < noticed - Duration::from_secs(3)).await;
    assert_eq!(gaps(&fixture).await, 0, "it is not over");
    set(right).await;
    until("it is over", async || recorded().await > noticed).await;
    assert!(ledger.has_gap(noticed - Duration::from_secs(3), noticed).await.expect("read"));
    first.stopped().await;
    noting.await.expect("no panic").expect("an orderly end");
    ledger.close().await;
}

#[tokio::test]
async fn no_owner_is_found_by_elimination_before_everybody_has_recorded_what_they_let_through() {
    let Some(fixture) = fixture().await else { return };
    let ledger = fixture.ledger();
    let first = Running::start(&fixture.store.database, "a", NEVER, None).await;
    let second = Running::start(&fixture.store.database, "b", NEVER, None).await;
    let begun = Timestamp::now();
    let recorded = async || ledger.recorded_until().await.expect("read");
    until("both say so", async || known(&fixture).await.len() == 2 && recorded().await > begun).await;
    // One lets a submission through of which the database does not hear.
    let let_through = Timestamp::now();
    let opening = second.unrecorded.opening(let_through);
    until("the others wait", async || recorded().await < let_through).await;
    second.unrecorded.begin(let_through).await;
    drop(opening);
    let later = Timestamp::now();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(recorded().await < let_through, "it is still missing");
    second.unrecorded.recorded();
    until("it is there", async || recorded().await > later).await;
    first.stopped().await;
    second.stopped().await;
    assert_eq!(gaps(&fixture).await, 0);
}

#[tokio::test]
async fn one_that_is_never_heard_of_again_leaves_a_gap_and_one_that_comes_back_goes_on() {
    let Some(fixture) = fixture().await else { return };
    let database = &fixture.store.database;
    let lost_after = Duration::from_secs(2);
    let first = Running::start(database, "a", lost_after, None).await;
    until("it has the duty", async || first.duty.is_mine()).await;
    let second = Running::start(database, "b", lost_after, None).await;
    until("both are known", async || known(&fixture).await.len() == 2).await;
    let alive = Timestamp::now();
    second.killed().await;
    until("it is given up", async || known(&fixture).await == ["a"]).await;
    assert_eq!(gaps(&fixture).await, 1);
    assert!(fixture.ledger().has_gap(alive, Timestamp::now()).await.expect("read"));
    // It was only cut off, or frozen: the others have struck it off, and it says so anew.
    until("the first is in the table", async || known(&fixture).await == ["a"]).await;
    fixture.store.execute("DELETE FROM replicas").await;
    until("it is back", async || known(&fixture).await == ["a"]).await;
    first.stopped().await;
}

#[tokio::test]
async fn one_that_was_killed_and_comes_back_leaves_a_gap_unless_it_remembers() {
    let Some(fixture) = fixture().await else { return };
    let (database, dir) = (&fixture.store.database, tempfile::tempdir().expect("a folder"));
    for (state, expected) in [(Some(dir.path()), 0), (None, 1)] {
        let first = Running::start(database, "a", NEVER, state).await;
        until("it is known", async || known(&fixture).await == ["a"]).await;
        first.killed().await;
        let again = Running::start(database, "a", NEVER, state).await;
        until("it has the duty at once, which was its own", async || again.duty.is_mine()).await;
        assert_eq!(gaps(&fixture).await, expected, "with a folder: {}", state.is_some());
        again.stopped().await;
    }
}

#[tokio::test]
async fn one_remembers_only_the_start_that_its_file_is_of() {
    let Some(fixture) = fixture().await else { return };
    let (database, dir) = (&fixture.store.database, tempfile::tempdir().expect("a folder"));
    let killed = async |state: Option<&Path>| {
        let running = Running::start(database, "a", NEVER, state).await;
        // Not the one before it, of the same name.
        tokio::time::timeout(SOON, running.replica.known(NEVER)).await.expect("it is known");
        running.killed().await;
        gaps(&fixture).await
    };
    let state = Some(dir.path());
    assert_eq!(killed(state).await, 0);
    assert_eq!(killed(state).await, 0, "it remembers");
    assert_eq!(killed(None).await, 1, "without the folder it does not");
    assert_eq!(killed(state).await, 2, "nor does the file of an earlier start know of that one's end");
    assert_eq!(killed(state).await, 2, "it remembers again");

    // The form of the file that said of no start.
    let file = std::fs::OpenOptions::new().write(true).open(dir.path().join("a.gap")).expect("there");
    file.set_len(16).expect("cut");
    assert_eq!(killed(state).await, 3);

    // The last ten minutes before the kill it could not be written.
    let old = (Timestamp::now() - Duration::from_mins(10)).as_millisecond();
    file.write_all_at(&old.to_le_bytes(), 32).expect("written");
    assert_eq!(killed(state).await, 4);
}

#[tokio::test]
async fn two_of_one_name_are_told_apart() {
    let Some(fixture) = fixture().await else { return };
    let database = &fixture.store.database;
    let first = Running::start(database, "same", NEVER, None).await;
    until("the first is known", async || known(&fixture).await == ["same"]).await;
    let second = Running::start(database, "same", NEVER, None).await;
    until("both are known", async || known(&fixture).await.len() == 2).await;
    let names = known(&fixture).await;
    assert!(names[0] == "same" && names[1].starts_with("same#"), "{names:?}");
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(known(&fixture).await, names, "they leave each other alone");
    first.stopped().await;
    second.stopped().await;
    assert!(known(&fixture).await.is_empty());
}

#[tokio::test]
async fn a_purge_reaches_the_others_also_without_a_notification() {
    let Some(fixture) = fixture().await else { return };
    let database = &fixture.store.database;
    let first = Running::start(database, "a", NEVER, None).await;
    let second = Running::start(database, "b", NEVER, None).await;
    until("both are known", async || known(&fixture).await.len() == 2).await;
    second.resolve("token").await;
    for (n, (notified, purge)) in [
        (true, Purge::All),
        (true, Purge::Token(TokenHash::of("token"))),
        (true, Purge::Principal("user-1".into())),
        (false, Purge::All),
    ]
    .into_iter()
    .enumerate()
    {
        let asked = n + 1;
        second.resolve("token").await;
        assert_eq!(second.asked().await, asked, "out of memory");
        if notified {
            first.replica.announce(&purge).await.expect("told");
        } else {
            fixture.store.execute(r#"INSERT INTO purges (what) VALUES ('{"all":true}')"#).await;
        }
        let begun = std::time::Instant::now();
        until("it has forgotten", async || {
            second.resolve("token").await;
            second.asked().await > asked
        })
        .await;
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    }
    first.stopped().await;
    second.stopped().await;
}

#[tokio::test]
async fn while_a_replica_is_silent_owners_wait_but_of_a_workflow_that_has_no_time_nobody_is_looked_for() {
    let Some(fixture) = fixture().await else { return };
    fixture.store.execute("INSERT INTO replicas (name, incarnation, recorded_until) VALUES ('silent', '0', 1)").await;
    fixture.submit(&crate::ledger::contract::alice(), "r1", 99).await;
    let server = MockServer::start().await;
    for (id, submitted_at) in [("wfl-1", json!(null)), ("wfl-2", json!(at(100).to_string()))] {
        let workflow = json!({"workflow_id": id, "task_ids": [], "submitted_at": submitted_at, "status": "DONE",
            "dispatched_tasks": [], "completed_tasks": [], "failed_tasks": [], "cancelled_tasks": []});
        let answer = ResponseTemplate::new(200).set_body_json(workflow);
        let path = wiremock::matchers::path(format!("/api/v1/workflows/{id}"));
        Mock::given(path).respond_with(answer).mount(&server).await;
        fixture.ledger().note_workflows(&[(id.into(), Some(at(100)))], at(100)).await.expect("noted");
    }
    let flowmesh = config::Flowmesh { base_url: BaseUrl::of_test(&server.uri()), api_key: None };
    let metrics = Metrics::unread();
    let sweeper = Sweeper {
        ledger: Arc::new(PostgresLedger::open(&fixture.store.database, at(0)).await.expect("opens")),
        flowmesh: FlowMesh::new(Http::new(&flowmesh.base_url, SOON).expect("client"), flowmesh),
        circuit: Circuit::new(metrics.asking_paused.clone()),
        unrecorded: Unrecorded::default(),
        duty: Duty::always(),
        grace: Duration::ZERO,
        started: Timestamp::UNIX_EPOCH,
        news: News::default(),
        metrics,
    };
    let attribution = async |id: &str| {
        fixture.books().workflow(id).await.expect("read").expect("known").attribution.unwrap_or_default()
    };
    for due in sweeper.claim(at(100), 10).await.expect("claimed") {
        sweeper.step(due).await.expect("recorded");
    }
    assert_eq!((attribution("wfl-1").await, attribution("wfl-2").await), ("held".into(), String::new()));
    // It is given up, or says so: then everybody is known.
    fixture.store.execute("DELETE FROM replicas").await;
    for due in sweeper.claim(at(300), 10).await.expect("claimed") {
        sweeper.step(due).await.expect("recorded");
    }
    assert_eq!(attribution("wfl-2").await, "matched");
}
