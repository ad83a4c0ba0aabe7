use super::*;

fn parse(change: impl FnOnce(&mut Options)) -> Result<Config, String> {
    let mut options = Options::default();
    change(&mut options);
    Config::parse(options).map_err(|error| error.to_string())
}

#[expect(clippy::unnecessary_wraps, reason = "it is what the fields hold")]
fn some(text: &str) -> Option<String> {
    Some(text.to_owned())
}

#[test]
fn without_any_setting_identity_works_and_billing_is_off() {
    let config = parse(|_| {}).expect("defaults are valid");
    assert_eq!(config.lum_id_base_url.as_str(), "https://lum.id");
    assert!(config.billing.is_none());
    assert_eq!(config.grpc_listen, Listen::Tcp(([127, 0, 0, 1], 9001).into()));
    assert!(config.warnings.is_empty());
}

#[test]
fn an_empty_value_counts_as_unset() {
    let config = parse(|o| {
        o.lum_id_base_url = some("");
        o.lumid_balance_guard = some(" ");
    });
    assert_eq!(config.expect("empty is unset").lum_id_base_url.as_str(), "https://lum.id");
}

#[test]
fn every_error_is_one_line_that_names_its_variable() {
    type Change = fn(&mut Options);
    let cases: [(&str, Change); 30] = [
        ("LUM_ID_BASE_URL", |o| o.lum_id_base_url = some("lum.id")),
        ("LUM_ID_BASE_URL", |o| o.lum_id_base_url = some("ftp://lum.id")),
        ("LUM_ID_BASE_URL", |o| o.lum_id_base_url = some("https://u:p@lum.id")),
        ("RUNMESH_BILLING_BASE_URL", |o| o.runmesh_billing_base_url = some("https://r?x=1")),
        ("FLOWMESH_BRIDGE_SECRET", |o| o.flowmesh_bridge_secret = some("a b")),
        ("FLOWMESH_BRIDGE_SECRET_FILE", |o| o.flowmesh_bridge_secret_file = some("/nonexistent/secret")),
        ("LUMID_BALANCE_GUARD", |o| o.lumid_balance_guard = some("yes")),
        ("LUMID_STALE_IF_ERROR_SECS", |o| o.lumid_stale_if_error_secs = some("-1")),
        ("TOLLGATE_GRPC_LISTEN", |o| o.grpc_listen = some("0.0.0.0:9001")),
        ("TOLLGATE_GRPC_LISTEN", |o| o.grpc_listen = some("unix:relative.sock")),
        ("TOLLGATE_GRPC_LISTEN", |o| o.grpc_listen = some("unix:@abstract")),
        ("TOLLGATE_ADMIN_LISTEN", |o| o.admin_listen = some("9090")),
        ("TOLLGATE_LEDGER", |o| o.ledger = some("sqlite::memory:")),
        ("TOLLGATE_RETENTION_DAYS", |o| o.retention_days = some("31")),
        ("TOLLGATE_RETENTION_DAYS", |o| o.retention_days = some("90d")),
        ("TOLLGATE_LEDGER", |o| o.ledger = some("sqlite://ledger.db")),
        ("TOLLGATE_LEDGER", |o| o.ledger = some("mysql://user:hunter2@db/x")),
        ("TOLLGATE_LEDGER", |o| o.ledger = some("postgres://user:hunter2@/x")),
        ("TOLLGATE_LEDGER", |o| o.ledger = some("postgres://user:hunter2@db")),
        ("TOLLGATE_LEDGER", |o| o.ledger = some("postgres://:hunter2@db/x")),
        ("TOLLGATE_LEDGER", |o| o.ledger = some("postgres://user:hunter2@db:port/x")),
        ("TOLLGATE_LEDGER", |o| o.ledger = some("postgres://user:hunter2@db/x?sslmode=hunter2")),
        ("TOLLGATE_LEDGER", |o| o.ledger = some("postgres://user@db/x?password=hunter2")),
        ("TOLLGATE_POSTGRES_PASSWORD", |o| {
            o.ledger = some("postgres://user:hunter2@db/x");
            o.postgres_password = some("hunter2");
        }),
        ("TOLLGATE_POSTGRES_PASSWORD_FILE", |o| {
            o.ledger = some("postgres://user@db/x");
            o.postgres_password_file = some("/nonexistent/password");
        }),
        ("TOLLGATE_POSTGRES_POOL", |o| {
            o.ledger = some("postgres://user@db/x");
            o.postgres_pool = some("3");
        }),
        ("TOLLGATE_POSTGRES_STATEMENT_TIMEOUT_SECS", |o| {
            o.ledger = some("postgres://user@db/x");
            o.postgres_statement_timeout_secs = some("0");
        }),
        ("TOLLGATE_REPLICA", |o| {
            o.ledger = some("postgres://user@db/x");
            o.replica = some("two words");
        }),
        ("TOLLGATE_LOG", |o| o.log = some("tollgate=loud")),
        ("TOLLGATE_LOG_FORMAT", |o| o.log_format = some("xml")),
    ];
    for (variable, change) in cases {
        let error = parse(change).expect_err(variable);
        assert!(error.starts_with(&format!("{variable}: ")), "{error}");
        assert!(!error.contains('\n') && !error.contains("hunter2"), "{error}");
    }
}

#[test]
fn an_open_listener_must_be_asked_for_and_is_warned_about() {
    let config = parse(|o| {
        o.grpc_listen = some("0.0.0.0:9001");
        o.insecure_listen = some("on");
    });
    assert_eq!(config.expect("asked for").warnings.len(), 1);
}

#[test]
fn what_goes_over_a_network_in_clear_is_warned_about_and_loopback_is_not() {
    let warnings = |url: &str| parse(|o| o.lum_id_base_url = some(url)).expect("valid").warnings.len();
    assert_eq!(warnings("http://lum.internal"), 1);
    for url in ["https://lum.internal", "http://127.0.0.1:1", "http://[::1]:1", "http://localhost"] {
        assert_eq!(warnings(url), 0, "{url}");
    }
    let config = parse(|o| o.admin_listen = some("0.0.0.0:9090")).expect("valid");
    assert_eq!(config.warnings.len(), 1);
}

#[test]
fn billing_needs_both_url_and_secret_and_says_which_is_missing() {
    let config = parse(|o| o.runmesh_billing_base_url = some("https://kv.run:8000/Runmesh/")).expect("valid");
    assert!(config.billing.is_none());
    assert_eq!(config.warnings, ["billing is off: FLOWMESH_BRIDGE_SECRET is empty"]);
    let config = parse(|o| {
        o.runmesh_billing_base_url = some("https://kv.run:8000/Runmesh/");
        o.flowmesh_bridge_secret = some("s3cret");
    })
    .expect("valid");
    let billing = config.billing.as_ref().expect("both are there");
    assert_eq!(billing.base_url.join("/billing/x"), "https://kv.run:8000/Runmesh/billing/x");
    assert!(!format!("{config:?} {:?}", config.describe()).contains("s3cret"));
}

#[test]
fn a_secret_comes_from_a_file_without_its_newline_but_not_from_both_places() {
    let file = tempfile::NamedTempFile::new().expect("temp file");
    std::fs::write(file.path(), "from-file\n").expect("written");
    let path = file.path().to_str().map(str::to_owned);
    let config = parse(|o| o.flowmesh_api_key_file = path.clone()).expect("valid");
    assert_eq!(expose(&config.flowmesh.api_key.expect("given").get()), "from-file");
    std::fs::write(file.path(), "x".repeat(65_537)).expect("written");
    let error = parse(|o| o.flowmesh_api_key_file = path.clone()).expect_err("no header is that long");
    assert!(error.starts_with("FLOWMESH_API_KEY_FILE: cannot read ") && error.ends_with("file too large"), "{error}");
    let error = parse(|o| {
        o.flowmesh_api_key_file = path;
        o.flowmesh_api_key = some("x");
    });
    assert!(error.expect_err("ambiguous").contains("FLOWMESH_API_KEY_FILE"));
}

#[test]
fn an_unknown_variable_with_our_prefix_is_warned_about_with_the_name_that_was_meant() {
    for (name, meant) in [
        ("TOLLGATE_TLS_CERTS", "; did you mean TOLLGATE_TLS_CERT?"),
        ("TOLLGATE_LOG_FROMAT", "; did you mean TOLLGATE_LOG_FORMAT?"),
        ("TOLLGATE_LUMID_ORG_ID", "; did you mean LUMID_ORG_ID?"),
        ("TOLLGATE_SPEED", ""),
    ] {
        let names = [name, "TOLLGATE_TLS_CERT", "TOLLGATE_INSECURE_LISTEN", "TOLLGATE_LOG", "PATH"].map(str::to_owned);
        let config = parse(|_| {}).expect("valid").warn_of_unknown(names.into_iter());
        assert_eq!(config.warnings, [format!("{name} is set, but this version knows no such variable{meant}")]);
    }
}

#[test]
fn every_variable_is_described_once_and_a_secret_file_under_the_name_of_its_secret() {
    use clap::Args;
    let command = Options::augment_args(clap::Command::new(""));
    let variables = command.get_arguments().filter_map(|argument| argument.get_env()?.to_str());
    let mut expected: Vec<&str> = variables.filter(|variable| !variable.ends_with("_FILE")).collect();
    let mut described: Vec<&str> = parse(|_| {}).expect("valid").describe().iter().map(|s| s.variable).collect();
    expected.sort_unstable();
    described.sort_unstable();
    assert_eq!(described, expected);
}

#[test]
fn a_value_has_the_origin_that_it_came_from() {
    use clap::Args;
    let file = tempfile::NamedTempFile::new().expect("temp file");
    std::fs::write(file.path(), "hunter2").expect("written");
    let path = file.path().to_str().expect("text");
    let command = Options::augment_args(clap::Command::new("tollgate")).mut_args(|argument| argument.env(None::<&str>));
    let flags = ["tollgate", "--lumid-org-id", "x", "--log", "", "--flowmesh-bridge-secret-file", path];
    let matches = command.get_matches_from(flags);
    let config = parse(|o| {
        o.lumid_org_id = some("x");
        o.lumid_balance_guard = some("on");
        o.flowmesh_bridge_secret_file = some(path);
        o.origins = Origins::read(&matches);
    });
    let described = config.expect("valid").describe();
    let line = |variable: &str| described.iter().find(|s| s.variable == variable).expect("described").to_string();
    assert_eq!(line("LUMID_ORG_ID"), "LUMID_ORG_ID=x  # flag");
    assert_eq!(line("TOLLGATE_LOG"), "TOLLGATE_LOG=info  # default");
    assert_eq!(line("FLOWMESH_BRIDGE_SECRET"), format!("FLOWMESH_BRIDGE_SECRET=********  # file {path}"));
    assert_eq!(line("LUMID_BALANCE_GUARD"), "LUMID_BALANCE_GUARD=off  # because billing is off");
}

/// Sets all three files of mTLS; whether they exist is not asked here.
fn with_tls(o: &mut Options) {
    o.tls_cert = some("/tls/cert.pem");
    o.tls_key = some("/tls/key.pem");
    o.tls_client_ca = some("/tls/ca.pem");
}

#[test]
fn with_mtls_an_open_listener_needs_no_asking_and_is_no_risk() {
    for address in ["0.0.0.0:9001", "[::]:9001", "127.0.0.1:9001"] {
        let config = parse(|o| {
            with_tls(o);
            o.grpc_listen = some(address);
        })
        .expect("guarded");
        assert_eq!(config.grpc_listen.to_string(), address);
        assert!(config.warnings.is_empty(), "{:?}", config.warnings);
        let described = config.describe();
        for (variable, path) in [(TLS_CERT, "/tls/cert.pem"), (TLS_KEY, "/tls/key.pem"), (TLS_CLIENT_CA, "/tls/ca.pem")]
        {
            assert!(described.iter().any(|s| s.variable == variable && s.value == path), "{described:?}");
        }
    }
    let error = parse(|o| o.grpc_listen = some("0.0.0.0:9001")).expect_err("open");
    assert!(error.contains("TOLLGATE_TLS_CERT") && error.contains("TOLLGATE_INSECURE_LISTEN"), "{error}");
}

#[test]
fn a_part_of_the_mtls_files_is_an_error_that_names_the_missing_one() {
    type Change = fn(&mut Options);
    let cases: [(&str, Change); 4] = [
        (TLS_CERT, |o| o.tls_cert = None),
        (TLS_KEY, |o| o.tls_key = some(" ")),
        (TLS_CLIENT_CA, |o| o.tls_client_ca = None),
        (TLS_KEY, |o| (o.tls_key, o.tls_client_ca) = (None, None)),
    ];
    for (variable, change) in cases {
        let error = parse(|o| {
            with_tls(o);
            change(o);
        })
        .expect_err(variable);
        assert!(error.starts_with(&format!("{variable}: is not set")) && !error.contains('\n'), "{error}");
    }
    assert!(parse(|_| {}).expect("none is fine").tls.is_none());
}

#[test]
fn mtls_on_a_unix_socket_is_an_error() {
    let error = parse(|o| {
        with_tls(o);
        o.grpc_listen = some("unix:/run/tollgate.sock");
    })
    .expect_err("not for sockets");
    assert!(error.starts_with("TOLLGATE_TLS_CERT: mTLS is for TCP"), "{error}");
}

#[test]
fn a_collector_that_is_no_url_is_an_error_and_none_is_none() {
    let error = parse(|o| o.otlp_endpoint = some("collector:4318")).expect_err("no URL");
    assert!(error.starts_with("OTEL_EXPORTER_OTLP_ENDPOINT: "), "{error}");
    assert_eq!(parse(|o| o.otlp_endpoint = some(" ")).expect("unset").otlp_endpoint, None);
    let config = parse(|o| o.otlp_endpoint = some("http://127.0.0.1:4318/")).expect("valid");
    assert_eq!(config.otlp_endpoint.expect("set").join("/v1/traces"), "http://127.0.0.1:4318/v1/traces");
}

#[test]
fn a_password_is_shown_nowhere_and_may_be_in_a_file() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("password");
    std::fs::write(&file, "hunter2\n").expect("written");
    let in_url = parse(|o| o.ledger = some("postgres://user:hunter2@127.0.0.1/x")).expect("valid");
    let in_file = |url: &'static str| {
        let file = file.display().to_string();
        move |o: &mut Options| {
            o.ledger = some(url);
            o.postgres_password_file = Some(file.clone());
        }
    };
    let mut options = Options::default();
    in_file("postgres://user@db.internal/x?sslmode=verify-full")(&mut options);
    let in_file = Config::parse(options).expect("valid");
    for config in [&in_url, &in_file] {
        let told = format!("{config:?} {:?} {}", config.describe(), config.ledger);
        assert!(!told.contains("hunter2"), "{told}");
        assert_eq!(config.warnings, [""; 0]);
    }
    let password = in_file.ledger.password().expect("one");
    assert_eq!(expose(&password.get()), "hunter2");
    assert!(password.file().is_some(), "it is looked at again while Tollgate runs");
}

#[test]
fn a_database_that_anybody_could_pretend_to_be_is_warned_about() {
    let warnings = |url: &str| parse(|o| o.ledger = some(url)).expect("valid").warnings.len();
    for url in ["postgres://user@db/x", "postgresql://user@db/x?sslmode=require"] {
        assert_eq!(warnings(url), 1, "{url}");
    }
    for url in [
        "postgres://user@db/x?sslmode=verify-full",
        "postgres://user@127.0.0.1:5433/x",
        "postgres://user@[::1]/x",
        "postgres://user@%2Frun%2Fpostgresql/x",
        "postgres://user@localhost/x?host=/run/postgresql",
    ] {
        assert_eq!(warnings(url), 0, "{url}");
    }
}
