//! TLS to the database, by the URL's `sslmode`.

use std::path::{Path, PathBuf};
use std::process::Command;

use tollgate_local::stack::Authority;

use super::*;

/// A server of the test's own that speaks TLS, with a certificate for 127.0.0.1.
struct Server {
    folder: PathBuf,
    url: String,
    authority: Authority,
}

fn script(arguments: &[&str]) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/postgres");
    let output = Command::new(path).args(arguments).output().expect("run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text").trim().to_owned()
}

impl Server {
    fn start() -> Self {
        let made = script(&["new"]);
        let (folder, url) = made.split_once(' ').expect("a folder and a URL");
        let server =
            Self { folder: folder.into(), url: url.to_owned(), authority: Authority::new("database").expect("made") };
        let identity = server.authority.issue(&["127.0.0.1"], 2099).expect("issued");
        let data = server.folder.join("data");
        let (cert, key) = identity.write(&data, "server").expect("written");
        for file in [&cert, &key] {
            // As whoever runs the server wants it.
            let mut owned = Command::new("sh");
            owned.arg("-c").arg(r#"chown --reference="$0" "$1" && chmod 600 "$1""#).arg(&data).arg(file);
            assert!(owned.status().expect("run").success());
        }
        let file = |path: &Path| path.file_name().expect("a name").to_string_lossy().into_owned();
        let settings = format!("ssl = on\nssl_cert_file = '{}'\nssl_key_file = '{}'\n", file(&cert), file(&key));
        let config = data.join("postgresql.conf");
        let text = std::fs::read_to_string(&config).expect("read") + &settings;
        std::fs::write(&config, text).expect("written");
        script(&["start", folder]);
        server
    }

    fn database(&self, parameters: &str) -> config::Postgres {
        config::Postgres::of_test(&format!("{}?{parameters}", self.url))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        script(&["stop", &self.folder.display().to_string(), "immediate"]);
        let _ = std::fs::remove_dir_all(self.folder.parent().expect("made with its parent"));
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
    let mut elsewhere = reqwest::Url::parse(&server.url).expect("a URL");
    elsewhere.set_host(Some("localhost")).expect("a host");
    elsewhere.set_query(Some(&format!("sslmode=verify-full&sslrootcert={}", ours.display())));
    let error = is_encrypted(&config::Postgres::of_test(elsewhere.as_str())).await.expect_err("another name");
    assert!(error.to_string().contains("certificate"), "{error}");
    // A CA that is not what it should be is told at start, too.
    let error = is_encrypted(&verified(&dir.path().join("none.pem"))).await.expect_err("no file").to_string();
    assert!(!error.contains('\n'), "{error}");
}
