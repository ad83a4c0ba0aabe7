use super::*;

fn rendered(listen: &str, admin: &str, upstream: &str, tollgate: &str) -> Result<String, String> {
    Addresses::parse(listen, admin, upstream, tollgate)
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
    assert_eq!(text.matches(&format!("endpoint: {{address: {}}}", address("10.0.0.4", 9001))).count(), 1);
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
    assert!(text.contains(r#"endpoint: {address: {"pipe":{"path":"/run/tollgate/grpc.sock"}}}"#));
    assert!(!text.contains("type: \"STRICT_DNS\""));
}

#[test]
fn quotes_and_braces_in_a_socket_path_stay_inside_their_value() {
    let path = r#"/run/a"}}, b: {"c\'#: &x *y ${admin} é"#;
    let text = with_tollgate(&format!("unix:{path}")).unwrap();
    let value = json!({"pipe": {"path": path}}).to_string();
    assert!(text.contains(&format!("endpoint: {{address: {value}}}")));
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
            tollgate: Endpoint::Tcp(good),
        };
        for (flag, addresses) in [
            ("--listen", Addresses { listen: bad.clone(), ..all.clone() }),
            ("--admin", Addresses { admin: bad.clone(), ..all.clone() }),
            ("--upstream", Addresses { upstream: bad.clone(), ..all.clone() }),
            ("--tollgate", Addresses { tollgate: Endpoint::Tcp(bad.clone()), ..all.clone() }),
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
        let tollgate = Endpoint::Unix(path.into());
        let error = render(&Addresses { listen: good.clone(), admin: good.clone(), upstream: good.clone(), tollgate })
            .unwrap_err()
            .to_string();
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
