use super::*;

fn rendered(listen: &str, admin: &str, upstream: &str, tollgate: &str) -> Result<String, String> {
    Addresses::parse(listen, admin, upstream, &[tollgate], TlsFlags::default())
        .and_then(|addresses| render(&addresses))
        .map_err(|error| error.to_string())
}

fn with_upstream(upstream: &str) -> Result<String, String> {
    rendered("127.0.0.1:0", "127.0.0.1:0", upstream, "127.0.0.1:9001")
}

fn with_tollgate(tollgate: &str) -> Result<String, String> {
    rendered("127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:8000", tollgate)
}

fn with_listen(listen: &str) -> Result<String, String> {
    rendered(listen, "127.0.0.1:0", "127.0.0.1:8000", "127.0.0.1:9001")
}

#[test]
fn every_address_lands_in_its_own_place() {
    let text = rendered("0.0.0.0:10000", "127.0.0.1:9901", "10.0.0.3:8000", "10.0.0.4:9001").unwrap();
    let address = |host, port| format!(r#"{{"socket_address":{{"address":"{host}","port_value":{port}}}}}"#);
    assert!(text.contains(&format!("\n    address: {}\n", address("0.0.0.0", 10000))));
    assert!(text.contains(&format!("\n  address: {} ", address("127.0.0.1", 9901))));
    assert_eq!(text.matches(&format!("endpoint: {{address: {}}}", address("10.0.0.3", 8000))).count(), 1);
    let tollgate = format!(r#"lb_endpoints: [{{"endpoint":{{"address":{}}}}}]"#, address("10.0.0.4", 9001));
    assert_eq!(text.matches(&tollgate).count(), 1);
    assert_eq!(text.matches("\n    type: \"STATIC\"\n").count(), 4);
    assert!(!text.contains("${"));
}

#[test]
fn the_same_addresses_give_the_same_text() {
    assert_eq!(with_upstream("flowmesh:8000").unwrap(), with_upstream("flowmesh:8000").unwrap());
}

#[test]
fn host_names_are_looked_up_and_ip_addresses_are_not() {
    let text = rendered("127.0.0.1:0", "127.0.0.1:0", "flow_mesh.internal.:8000", "10.0.0.4:9001").unwrap();
    assert_eq!(text.matches("\n    type: \"STRICT_DNS\"\n").count(), 2);
    assert_eq!(text.matches("\n    type: \"STATIC\"\n").count(), 2);
}

#[test]
fn an_ipv6_address_loses_its_brackets() {
    let text = rendered("[::1]:10000", "[::1]:0", "[fd00::3]:8000", "[0:0::4]:9001").unwrap();
    for host in ["::1", "fd00::3", "::4"] {
        assert!(text.contains(&format!(r#""address":"{host}""#)), "{host}");
    }
    assert!(!text.contains("STRICT_DNS\"\n"));
}

#[test]
fn listening_on_all_of_ipv6_takes_ipv4_in() {
    assert!(
        with_listen("[::]:10000")
            .unwrap()
            .contains(r#"{"socket_address":{"address":"::","ipv4_compat":true,"port_value":10000}}"#)
    );
}

#[test]
fn localhost_is_an_address_to_listen_on() {
    assert!(with_listen("localhost:10000").unwrap().contains(r#"{"address":"127.0.0.1","port_value":10000}"#));
}

#[test]
fn a_unix_socket_is_a_pipe() {
    let text = with_tollgate("unix:/run/tollgate/grpc.sock").unwrap();
    assert!(text.contains(r#"lb_endpoints: [{"endpoint":{"address":{"pipe":{"path":"/run/tollgate/grpc.sock"}}}}]"#));
    assert!(!text.contains("type: \"STRICT_DNS\""));
}

#[test]
fn quotes_and_braces_in_a_socket_path_stay_inside_their_value() {
    let path = r#"/run/a"}}, b: {"c\'#: &x *y ${admin} é"#;
    let text = with_tollgate(&format!("unix:{path}")).unwrap();
    let value = json!({"pipe": {"path": path}}).to_string();
    assert!(text.contains(&format!(r#"lb_endpoints: [{{"endpoint":{{"address":{value}}}}}]"#)));
    assert_eq!(text.lines().count(), TEMPLATE.lines().count());
}

#[test]
fn hostile_hosts_are_refused_even_when_they_were_not_parsed() {
    for host in [
        "a\"b",
        "a\nb",
        "a b",
        "a}",
        "a: b",
        "a#b",
        "${admin}",
        "a/b",
        "a@b",
        "é",
        "\0",
        "[::1]",
        "a..b",
        "-a",
        "127.1",
        "10.0.0.256",
        "1.2.3.4.5",
    ] {
        let bad = HostPort { host: host.to_owned(), port: 1 };
        let good = HostPort { host: "127.0.0.1".to_owned(), port: 1 };
        let all = Addresses {
            listen: good.clone(),
            admin: good.clone(),
            upstream: good.clone(),
            tollgate: vec![Endpoint::Tcp(good)],
            tls: None,
        };
        for (flag, addresses) in [
            ("--listen", Addresses { listen: bad.clone(), ..all.clone() }),
            ("--admin", Addresses { admin: bad.clone(), ..all.clone() }),
            ("--upstream", Addresses { upstream: bad.clone(), ..all.clone() }),
            ("--tollgate", Addresses { tollgate: vec![Endpoint::Tcp(bad.clone())], ..all.clone() }),
        ] {
            let error = render(&addresses).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{flag}: ")) && error.lines().count() == 1, "{error}");
        }
    }
}

#[test]
fn hostile_socket_paths_are_refused_even_when_they_were_not_parsed() {
    let good = HostPort { host: "127.0.0.1".to_owned(), port: 1 };
    for path in ["/run/a\nb", "/run/a\0b", "/run/\u{7f}", "relative.sock", "", "/run/dir/"] {
        let (listen, admin, upstream) = (good.clone(), good.clone(), good.clone());
        let tollgate = vec![Endpoint::Unix(path.into())];
        let error = render(&Addresses { listen, admin, upstream, tollgate, tls: None }).unwrap_err().to_string();
        assert!(error.starts_with("--tollgate: the socket path ") && error.lines().count() == 1, "{error}");
    }
}

#[test]
fn an_error_says_what_was_wrong_with_the_address() {
    for (given, told) in [
        ("flowmesh", r#"--upstream: "flowmesh" has no port; write host:port"#),
        ("flowmesh:", r#"--upstream: "flowmesh:" has no port; write host:port"#),
        ("[::1]", r#"--upstream: "[::1]" has no port; write host:port"#),
        ("[::1]8000", r#"--upstream: "[::1]8000" has no port; write host:port"#),
        (":8000", "--upstream: the host is empty; write host:port"),
        ("", r#"--upstream: "" has no port; write host:port"#),
        ("flowmesh:http", r#"--upstream: "http" is not a port; write host:port with a port of at most 65535"#),
        ("flowmesh:65536", r#"--upstream: "65536" is not a port; write host:port with a port of at most 65535"#),
        ("flowmesh:+80", r#"--upstream: "+80" is not a port; write host:port with a port of at most 65535"#),
        ("flowmesh:0", "--upstream: port 0 means any free port and cannot be connected to"),
        ("http://flowmesh:8000", r#"--upstream: "http://flowmesh:8000" is a URL; write host:port"#),
        ("::1:8000", r#"--upstream: an IPv6 address goes in brackets: "::1:8000" should look like [::1]:8000"#),
        ("[::1:8000", r#"--upstream: "[::1:8000" is not an IPv6 address"#),
        ("[flowmesh]:8000", r#"--upstream: "flowmesh" is not an IPv6 address"#),
        ("[fe80::1%eth0]:8000", r#"--upstream: "fe80::1%eth0" is not an IPv6 address"#),
        ("flow mesh:8000", r#"--upstream: "flow mesh" is neither an IP address nor a host name"#),
        ("a\n\"b:8000", r#"--upstream: "a\n\"b" is neither an IP address nor a host name"#),
        ("0.0.0.0:8000", "--upstream: 0.0.0.0 is an address to listen on, not one to connect to"),
    ] {
        assert_eq!(with_upstream(given).unwrap_err(), told);
    }
}

#[test]
fn envoy_is_not_told_to_listen_on_a_host_name() {
    assert_eq!(
        with_listen("edge.example:10000").unwrap_err(),
        r#"--listen: Envoy cannot listen on the host name "edge.example"; give an IP address (0.0.0.0 for all of IPv4) or localhost"#
    );
}

#[test]
fn a_socket_path_may_have_107_bytes_and_no_more() {
    let path = |bytes: usize| format!("unix:/é{}", "x".repeat(bytes - "/é".len()));
    assert!(with_tollgate(&path(107)).is_ok());
    assert_eq!(with_tollgate(&path(108)).unwrap_err(), "--tollgate: the socket path has 108 bytes; Linux allows 107");
}

#[test]
fn a_socket_path_must_not_depend_on_where_envoy_was_started() {
    assert_eq!(
        with_tollgate("unix:grpc.sock").unwrap_err(),
        r#"--tollgate: the socket path "grpc.sock" is not absolute; write unix:/path"#
    );
}

#[test]
fn a_placeholder_that_nothing_fills_is_an_error() {
    let one = Value::from(1);
    let known = |name: &str| (name == "a").then_some(&one);
    assert_eq!(fill("x ${a} y", known).unwrap(), "x 1 y");
    assert_eq!(fill("x ${b} y", known), Err(Error::Placeholder("${b}".to_owned())));
    assert_eq!(fill("x ${a\n} y", known), Err(Error::Placeholder("${a".to_owned())));
}

fn with_tollgates(tollgates: &[&str], change: impl FnOnce(&mut TlsFlags)) -> Result<String, String> {
    let mut tls = TlsFlags::default();
    change(&mut tls);
    Addresses::parse("127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:8000", tollgates, tls)
        .and_then(|addresses| render(&addresses))
        .map_err(|error| error.to_string())
}

fn with_tls_files(flags: &mut TlsFlags) {
    flags.tollgate_tls_ca = Some("/tls/ca.pem".to_owned());
    flags.tollgate_tls_cert = Some("/tls/cert.pem".to_owned());
    flags.tollgate_tls_key = Some("/tls/key.pem".to_owned());
}

#[test]
fn several_tollgates_are_endpoints_of_both_clusters() {
    let hosts = |text: &str| text.matches(r#"{"endpoint":{"address":{"#).count();
    let fixed = with_tollgates(&["10.0.0.4:9001", "[::1]:9001", "unix:/run/t.sock"], |_| {}).unwrap();
    assert_eq!((hosts(&fixed), fixed.matches("type: \"STRICT_DNS\"").count()), (3, 0));
    let mixed = with_tollgates(&["10.0.0.4:9001", "toll.internal:9001"], |_| {}).unwrap();
    assert_eq!((hosts(&mixed), mixed.matches("type: \"STRICT_DNS\"").count()), (2, 2));
    assert_eq!(
        with_tollgates(&["unix:/run/t.sock", "toll.internal:9001"], |_| {}).unwrap_err(),
        "--tollgate: unix:/run/t.sock is a Unix socket, and another Tollgate is a host name: \
         Envoy cannot look up both in one cluster"
    );
    assert_eq!(
        with_tollgates(&["[::1]:9001", "[::1]:9001"], |_| {}).unwrap_err(),
        "--tollgate: [::1]:9001 is given twice"
    );
}

#[test]
fn mtls_verifies_the_hosts_that_are_connected_to_or_the_name_given() {
    let names = |tollgates: &[&str], name: Option<&str>| {
        let text = with_tollgates(tollgates, |flags| {
            with_tls_files(flags);
            flags.tollgate_tls_name = name.map(str::to_owned);
        })
        .unwrap();
        let line = text.lines().find_map(|line| line.trim().strip_prefix("transport_socket: &tollgate_tls ")).unwrap();
        let socket: Value = serde_json::from_str(line.trim_end_matches("# null: in the clear")).unwrap();
        let context = &socket["typed_config"];
        let names = &context["common_tls_context"]["validation_context"]["match_typed_subject_alt_names"];
        let names = names.as_array().unwrap().iter();
        let names: Vec<_> = names.map(|name| format!("{} {}", name["san_type"], name["matcher"]["exact"])).collect();
        (names.join(", ").replace('"', ""), context["sni"].as_str().map(str::to_owned))
    };
    let sni = |name: &str| Some(name.to_owned());
    assert_eq!(names(&["toll.internal.:9001"], None), ("DNS toll.internal".to_owned(), sni("toll.internal")));
    assert_eq!(names(&["10.0.0.4:9001"], None), ("IP_ADDRESS 10.0.0.4".to_owned(), None));
    assert_eq!(names(&["a:9001", "[::1]:9001", "a:9002"], None), ("DNS a, IP_ADDRESS ::1".to_owned(), None));
    assert_eq!(names(&["a:9001", "b:9001"], Some("toll")), ("DNS toll".to_owned(), sni("toll")));
    assert_eq!(names(&["a:9001"], Some("fd00::3")), ("IP_ADDRESS fd00::3".to_owned(), None));
}

#[test]
fn without_the_flags_of_mtls_there_is_none() {
    let text = with_tollgate("10.0.0.4:9001").unwrap();
    assert!(text.contains("\n    transport_socket: &tollgate_tls null ") && !text.contains("UpstreamTlsContext"));
}

#[test]
fn the_flags_of_mtls_go_together_and_an_error_names_the_one_concerned() {
    type Change = fn(&mut TlsFlags);
    let cases: [(&str, &str, Change); 9] = [
        ("--tollgate-tls-ca", "is missing", |f| f.tollgate_tls_ca = None),
        ("--tollgate-tls-cert", "is missing", |f| f.tollgate_tls_cert = None),
        ("--tollgate-tls-key", "is missing", |f| f.tollgate_tls_key = None),
        ("--tollgate-tls-ca", "is missing", |f| {
            *f = TlsFlags { tollgate_tls_name: Some("toll".to_owned()), ..TlsFlags::default() };
        }),
        ("--tollgate-tls-sds", "give it or them", |f| f.tollgate_tls_sds = Some("/tls".to_owned())),
        ("--tollgate-tls-key", "is not absolute", |f| f.tollgate_tls_key = Some("key.pem".to_owned())),
        ("--tollgate-tls-cert", "is not plain text", |f| f.tollgate_tls_cert = Some("/a\nb".to_owned())),
        ("--tollgate-tls-name", "neither a host name", |f| f.tollgate_tls_name = Some("toll gate".to_owned())),
        ("--tollgate-tls-sds", "is not absolute", |f| {
            *f = TlsFlags { tollgate_tls_sds: Some(String::new()), ..TlsFlags::default() };
        }),
    ];
    for (flag, told, change) in cases {
        let error = with_tollgates(&["a:9001"], |flags| {
            with_tls_files(flags);
            change(flags);
        })
        .unwrap_err();
        assert!(error.starts_with(&format!("{flag}: ")) && error.contains(told), "{flag} {told}: {error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
    let error = with_tollgates(&["unix:/run/t.sock"], with_tls_files).unwrap_err();
    assert_eq!(error, "--tollgate-tls-ca: mTLS is for TCP, and unix:/run/t.sock is a Unix socket, which needs none");
}
