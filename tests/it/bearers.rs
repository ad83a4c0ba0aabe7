//! Every form of `Authorization` through the real Envoy: one well-formed bearer, or a refusal that asks nobody.

use tollgate_local::stack::{ALICE, PEOPLE};

use crate::harness::{Answer, Edge, Http2};

const MISSING: &str = r#"{"detail":"Missing bearer token"}"#;
const INACTIVE: &str = r#"{"detail":"No identity provider accepted the token"}"#;
/// The longest token.
const LONGEST: usize = 8 * 1024;

/// A request with these values of `authorization`, a line each.
async fn with_values(edge: &Edge, values: &[&[u8]]) -> Answer {
    let mut request = b"GET /api/v1/tasks HTTP/1.1\r\nhost: x\r\nconnection: close\r\n".to_vec();
    for value in values {
        request.extend_from_slice(&[b"authorization: ", *value, b"\r\n"].concat());
    }
    request.extend_from_slice(b"\r\n");
    edge.raw(request).await
}

fn assert_refused(answer: &Answer, detail: &str, challenge: &str, what: &str) {
    assert_eq!((answer.status, answer.body.as_str()), (401, detail), "{what}");
    assert_eq!(answer.header("www-authenticate"), Some(challenge), "{what}");
    assert_eq!(answer.header("content-type"), Some("application/json"), "{what}");
    assert!(answer.header("x-request-id").is_some_and(|id| id.len() == 36), "{what}: {answer:?}");
}

#[tokio::test]
async fn what_is_not_one_well_formed_bearer_is_refused_and_lum_id_is_not_asked() {
    let edge = Edge::start().await;
    let good = format!("Bearer {}", ALICE.token);
    let bytes = |text: &str| text.as_bytes().to_vec();
    let one = [
        Vec::new(),
        bytes("Bearer"),
        bytes("Bearer:"),
        bytes("Basic YWxpY2U6cGFzcw=="),
        bytes("Token abc"),
        bytes("Digest username=alice"),
        bytes(ALICE.token),
        bytes(&format!("Bearer{}", ALICE.token)),
        bytes(&format!("Bearer\t{}", ALICE.token)),
        bytes(&format!("Bearer \t{}", ALICE.token)),
        bytes(&format!("Bearer {} x", ALICE.token)),
        bytes(&format!("Bearer {}\tx", ALICE.token)),
        bytes(&format!("Bearer Bearer {}", ALICE.token)),
        bytes(&format!("Basic x, {good}")),
        bytes(&format!("{good},")),
        bytes(&format!(",{good}")),
        bytes(&format!("{good},{good}")),
        bytes(&format!("{good}, {good}")),
        [good.as_bytes(), b"\xff"].concat(),
        [good.as_bytes(), b"\x80"].concat(),
        [b"Bearer \xc3\x28", ALICE.token.as_bytes()].concat(),
        [b"\xef\xbb\xbf", good.as_bytes()].concat(),
        bytes(&format!("{good}\u{fc}")),
        bytes("Bearer \u{202e}token"),
        bytes(&format!("Bearer {}", "a".repeat(LONGEST + 1))),
        bytes(&format!("Bearer {}", "a".repeat(40 * 1024))),
    ];
    for value in &one {
        let what = String::from_utf8_lossy(value).chars().take(80).collect::<String>();
        assert_refused(&with_values(&edge, &[value]).await, MISSING, "Bearer", &what);
    }
    let more: [&[&[u8]]; 5] = [
        &[],
        &[b"", b""],
        &[good.as_bytes(), good.as_bytes()],
        &[b"Basic YTpi", good.as_bytes()],
        &[good.as_bytes(), b"\xff"],
    ];
    for values in more {
        assert_refused(&with_values(&edge, values).await, MISSING, "Bearer", &format!("{values:?}"));
    }
    let mut client = Http2::connect(&edge).await;
    for values in [&[][..], &[good.as_str(), good.as_str()], &["", ""], &["Basic YTpi", &good]] {
        let headers: Vec<_> = values.iter().map(|value| ("authorization", *value)).collect();
        let request = client.request("GET", "/api/v1/tasks", &headers);
        assert_refused(&client.exchange(request, "", &[]).await, MISSING, "Bearer", &format!("HTTP/2 {values:?}"));
    }
    assert_eq!(edge.stack.lum_id.introspection_count(), 0);
    assert!(edge.seen().is_empty(), "{:?}", edge.seen());
    edge.finish().await;
}

#[tokio::test]
async fn what_envoy_itself_does_not_take_is_refused_before_tollgate() {
    let edge = Edge::start().await;
    // Over Envoy's own limit of 60 KiB for all headers.
    let huge = format!("Bearer {}", "a".repeat(100 * 1024));
    let refused = with_values(&edge, &[huge.as_bytes()]).await;
    assert_eq!(refused.status, 431, "{refused:?}");
    // Bytes that no header holds.
    for value in [&b"Bearer a\0b"[..], b"Bearer a\x01b", b"Bearer a\x7fb"] {
        let refused = with_values(&edge, &[value]).await;
        assert!(matches!(refused.status, 400 | 401), "{refused:?}");
    }
    assert_eq!(edge.stack.lum_id.introspection_count(), 0);
    assert!(edge.seen().is_empty(), "{:?}", edge.seen());
    edge.finish().await;
}

#[tokio::test]
async fn one_bearer_is_taken_in_every_form_that_means_one() {
    let edge = Edge::start().await;
    for value in [
        format!("Bearer {}", ALICE.token),
        format!("bearer {}", ALICE.token),
        format!("BEARER   {}", ALICE.token),
        // Blanks around a value are not part of it.
        format!("  Bearer {}  ", ALICE.token),
        format!("\tBearer {}\t", ALICE.token),
    ] {
        let answer = with_values(&edge, &[value.as_bytes()]).await;
        assert_eq!(answer.status, 200, "{value:?}: {answer:?}");
        assert_eq!(edge.seen().pop().expect("arrived").header("x-flowmesh-principal-id"), Some(ALICE.sub));
    }
    assert_eq!(edge.stack.lum_id.introspections(), [ALICE.token], "the same token each time");
    edge.finish().await;
}

#[tokio::test]
async fn an_empty_line_beside_a_bearer_is_none() {
    let edge = Edge::start().await;
    let good = format!("Bearer {}", ALICE.token);
    // Envoy makes one line of several before anybody sees them, and drops the empty ones.
    for values in [[good.as_str(), ""], ["", &good]] {
        assert_eq!(with_values(&edge, &values.map(str::as_bytes)).await.status, 200);
        assert_eq!(edge.seen().pop().expect("arrived").header("x-flowmesh-principal-id"), Some(ALICE.sub));
    }
    edge.finish().await;
}

#[tokio::test]
async fn a_token_of_any_other_look_is_lum_ids_to_judge() {
    let edge = Edge::start().await;
    let longest = "a".repeat(LONGEST);
    let odd = "a.b-c_d~e+f/g=h:i;j(k)l[m]{n}o%20p&token=q\"'<>!@#$^*|\\`?";
    let tokens = [longest.as_str(), "x", "null", odd, "' OR '1'='1"];
    for token in &tokens[..4] {
        let answer = with_values(&edge, &[format!("Bearer {token}").as_bytes()]).await;
        assert_refused(&answer, INACTIVE, "Bearer error=\"invalid_token\"", token);
    }
    assert_refused(
        &with_values(&edge, &[format!("Bearer {}", tokens[4]).as_bytes()]).await,
        MISSING,
        "Bearer",
        tokens[4],
    );
    assert_eq!(edge.stack.lum_id.introspections(), &tokens[..4], "each as it was sent");
    assert!(PEOPLE.iter().all(|person| !tokens.contains(&person.token)));
    assert!(edge.seen().is_empty(), "{:?}", edge.seen());
    edge.finish().await;
}
