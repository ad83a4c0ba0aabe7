//! Databases that cannot be used, or not now.

use super::*;
use crate::ledger::books::Found;

/// Why neither a `serve` nor the operator's side can use a database, in one line each that names it.
async fn why_not(database: &config::Postgres) -> String {
    let serve = PostgresLedger::open(database, at(0)).await.expect_err("cannot be opened");
    let operator = PostgresBooks::open(database).await.expect_err("cannot be opened");
    assert!(matches!(operator, Error::Open { .. }), "{operator}");
    for error in [serve.to_string(), operator.to_string()] {
        assert!(error.contains("127.0.0.1") && !error.contains('\n') && !error.contains("hunter2"), "{error}");
    }
    serve.to_string()
}

/// The server's URL with something else in it.
fn server(change: impl Fn(&mut reqwest::Url)) -> config::Postgres {
    let mut url = reqwest::Url::parse(&std::env::var(SERVER).expect("looked for")).expect("a URL");
    change(&mut url);
    config::Postgres::of_test(url.as_str())
}

#[tokio::test]
async fn what_no_wait_will_mend_is_an_error_at_start() {
    if !PostgresStore::is_there() {
        return;
    }
    let wrong = server(|url| url.set_password(Some("hunter2")).expect("can have one"));
    assert!(why_not(&wrong).await.contains("password authentication failed"));
    let none = server(|url| url.set_path("/no_such_database"));
    assert!(why_not(&none).await.contains("does not exist"));
    let clear = server(|url| url.set_query(Some("sslmode=require")));
    assert!(why_not(&clear).await.contains("TLS") || why_not(&clear).await.contains("SSL"));
}

#[tokio::test]
async fn a_ledger_of_another_version_is_refused_by_whoever_cannot_mend_it() {
    if !PostgresStore::is_there() {
        return;
    }
    let database = database().await;
    assert_eq!(PostgresBooks::look(&database).await.expect("usable"), Found::Nothing);
    let error = PostgresBooks::open(&database).await.expect_err("nothing there").to_string();
    assert!(error.contains("`tollgate serve` makes it"), "{error}");
    let store = PostgresStore::open_in(database.clone()).await;
    assert_eq!(PostgresBooks::look(&database).await.expect("usable"), Found::Ready);
    store
        .execute(
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
             VALUES (9999, 'from the future', true, '', 0)",
        )
        .await;
    assert!(why_not(&database).await.contains("newer version of Tollgate (its schema has step 9999)"));
    store.execute("DELETE FROM _sqlx_migrations").await;
    assert_eq!(PostgresBooks::look(&database).await.expect("usable"), Found::Older);
}

#[tokio::test]
async fn one_that_is_away_is_no_error_at_start_and_used_when_it_is_there() {
    if !PostgresStore::is_there() {
        return;
    }
    // Nobody listens there yet; later somebody does who passes everything on.
    let away = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let port = away.local_addr().expect("an address").port();
    drop(away);
    let made = database().await;
    let behind = made.connect_options();
    let server = std::env::var(SERVER).expect("looked for");
    let mut url = reqwest::Url::parse(&server).expect("a URL");
    let there = url.port().expect("a port");
    url.set_port(Some(port)).expect("can have one");
    url.set_path(behind.get_database().expect("a database"));
    let ledger = PostgresLedger::open(&config::Postgres::of_test(url.as_str()), at(7)).await.expect("no error");
    let error = ledger.backlog().await.expect_err("away").to_string();
    assert!(error.contains("refused"), "{error}");
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.expect("bound");
    tokio::spawn(async move {
        while let Ok((mut inbound, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut outbound = tokio::net::TcpStream::connect(("127.0.0.1", there)).await.expect("a server");
                let _ = tokio::io::copy_bidirectional(&mut inbound, &mut outbound).await;
            });
        }
    });
    assert_eq!(ledger.born_at().await.expect("read"), at(7), "the schema is there by now");
}

#[tokio::test]
async fn a_user_who_may_not_make_tables_is_told_so_once_and_can_use_what_is_there() {
    if !PostgresStore::is_there() {
        return;
    }
    let store = PostgresStore::fresh().await;
    let name = store.database.connect_options().get_database().expect("a database").to_owned();
    let mut lent = store.ledger.store.get().await.expect("a connection");
    let user = format!("user_{}", uuid::Uuid::now_v7().simple());
    for statement in [
        format!("CREATE ROLE {user} LOGIN PASSWORD 'pass'"),
        format!("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {user}"),
        format!("GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {user}"),
    ] {
        sqlx::query(AssertSqlSafe(statement)).execute(&mut *lent).await.expect("executed");
    }
    let as_user = |database: &str| {
        server(|url| {
            url.set_path(database);
            url.set_username(&user).expect("can have one");
            url.set_password(Some("pass")).expect("can have one");
        })
    };
    let ledger = PostgresLedger::open(&as_user(&name), at(9)).await.expect("opens");
    ledger.note_gap(at(1), at(2)).await.expect("committed");
    assert_eq!(ledger.born_at().await.expect("read"), at(0));
    // Whoever owns an empty database makes the tables; nobody else may.
    let empty = database().await.connect_options().get_database().expect("a database").to_owned();
    let error = PostgresLedger::open(&as_user(&empty), at(9)).await.expect_err("not allowed").to_string();
    assert!(error.contains("permission denied"), "{error}");
}

#[tokio::test]
async fn what_is_not_in_utf8_or_too_long_for_an_index_is_refused_alone() {
    if !PostgresStore::is_there() {
        return;
    }
    let fixture = Fixture::<PostgresStore>::new().await;
    let long = (0..3000).map(|_| fastrand::alphanumeric()).collect::<String>();
    let events: Vec<crate::access_log::event::Event> = ["tsk-1", &long, "tsk-2"]
        .map(|task| crate::access_log::event::Event::TaskEnded { task_id: task.to_owned() })
        .into();
    let error = fixture.ledger().record(&events, at(1)).await.expect_err("one of them is refused");
    assert!(matches!(error, Error::Refused(_)), "{error}");

    // The intake leaves it out, and nothing else.
    let ledger = Arc::new(PostgresLedger::open(&fixture.store.database, at(0)).await.expect("opens"));
    let (ways, queue) = crate::access_log::queue(16, 16);
    let metrics = crate::telemetry::Metrics::unread();
    let intake = crate::access_log::Intake::new(
        ledger,
        queue,
        crate::drive::News::default(),
        crate::ledger::unrecorded::Unrecorded::default(),
        16,
        metrics.clone(),
    );
    for event in events {
        ways.log.send(event).await.expect("queued");
    }
    drop(ways);
    intake.run().await.expect("all that can be is committed");
    assert_eq!(fixture.backlog().await.due_tasks, 2);
    let refused = metrics.ledger_errors.get_or_create(&crate::telemetry::KindLabels { kind: "refused_event" });
    assert_eq!(refused.get(), 1);
}
