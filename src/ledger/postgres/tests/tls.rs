//! TLS to the database, by the URL's `sslmode`.

use std::path::Path;
use std::process::Command;

use tollgate_local::stack::{Authority, Postgres, Sync};

use super::*;

/// A server of the test's own that speaks TLS, with a certificate for 127.0.0.1.
struct Server {
    postgres: Postgres,
    authority: Authority,
}

impl Server {
    fn start() -> Self {
        let postgres = Postgres::make(Sync::Off).expect("made");
        let authority = Authority::new("database").expect("made");
        let identity = authority.issue(&["127.0.0.1"], 2099).expect("issued");
        let data = postgres.data();
        let (cert, key) = identity.write(&data, "server").expect("written");
        for file in [&cert, &key] {
            // As whoever runs the server wants it.
            let mut owned = Command::new("sh");
            owned.arg("-c").arg(r#"chown --reference="$0" "$1" && chmod 600 "$1""#).arg(&data).arg(file);
            assert!(owned.status().expect("run").success());
        }
        let settings = "ssl = on\nssl_cert_file = 'server.pem'\nssl_key_file = 'server.key'\n";
        postgres.configure(settings).expect("written");
        postgres.start().expect("starts");
        Self { postgres, authority }
    }

    fn database(&self, parameters: &str) -> config::Postgres {
        config::Postgres::of_test(&format!("{}?{parameters}", self.postgres.url()))
    }
}

async fn is_encrypted(database: &config::Postgres) -> Result<bool, Error> {
    let ledger = PostgresLedger::open(database, at(0)).await?;
    let encrypted = "SELECT ssl::int::bigint FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    Ok(ledger.number(encrypted).await? == Some(1))
}

#[tokio::test]
async fn the_sslmode_of_the_url_decides_and_a_stranger_in_its_place_is_refused() {
    if !PostgresStore::is_there() {
        return;
    }
    let server = Server::start();
    let dir = tempfile::tempdir().expect("a folder");
    let (ours, others) = (dir.path().join("ours.pem"), dir.path().join("others.pem"));
    std::fs::write(&ours, server.authority.pem()).expect("written");
    std::fs::write(&others, Authority::new("database").expect("made").pem()).expect("written");
    let verified = |root: &Path| server.database(&format!("sslmode=verify-full&sslrootcert={}", root.display()));
    assert!(is_encrypted(&verified(&ours)).await.expect("it is the one"));
    assert!(is_encrypted(&server.database("sslmode=require")).await.expect("whoever it is"));
    assert!(!is_encrypted(&server.database("sslmode=disable")).await.expect("in the clear"));
    let error = is_encrypted(&verified(&others)).await.expect_err("another authority's").to_string();
    assert!(error.contains("certificate"), "{error}");
    let mut elsewhere = reqwest::Url::parse(server.postgres.url()).expect("a URL");
    elsewhere.set_host(Some("localhost")).expect("a host");
    elsewhere.set_query(Some(&format!("sslmode=verify-full&sslrootcert={}", ours.display())));
    let error = is_encrypted(&config::Postgres::of_test(elsewhere.as_str())).await.expect_err("another name");
    assert!(error.to_string().contains("certificate"), "{error}");
    // A CA that is not what it should be is told at start, too.
    let error = is_encrypted(&verified(&dir.path().join("none.pem"))).await.expect_err("no file").to_string();
    assert!(!error.contains('\n'), "{error}");
}
