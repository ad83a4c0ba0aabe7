//! lum.id, as far as it concerns Tollgate: `POST /oauth/introspect`.

use std::{
    collections::HashMap,
    fmt, io,
    sync::{Arc, Mutex},
};

use axum::{
    body::{Bytes, to_bytes},
    extract::Request,
    http::{Method, StatusCode, header, request::Parts},
    response::Response,
};
use jiff::Timestamp;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{
    Subscribers,
    fault::{self, Fault, Faults},
    lock, media_type,
    server::{Answer, Closed, Server},
};

/// A stand-in for lum.id.
#[derive(Clone)]
pub struct LumId {
    server: Arc<Server>,
    inner: Arc<Inner>,
}

/// What a subscriber is told. Displayed as one line that gives no token away.
#[derive(Clone, Debug)]
pub enum Happened {
    /// A token was asked about.
    Introspected {
        /// The token.
        token: String,
        /// What is known about it, whatever fault may have kept the caller from learning it.
        active: bool,
        /// Whose it is, when it is active.
        sub: Option<String>,
    },
}

impl fmt::Display for Happened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Introspected { token, active, sub } = self;
        let state = if *active { "active" } else { "inactive" };
        write!(f, "introspected {} → {state}", abridged(token))?;
        match sub {
            Some(sub) => write!(f, ", {sub}"),
            None => Ok(()),
        }
    }
}

/// The first few characters of a token that is long enough to spare them.
fn abridged(token: &str) -> String {
    let shown = if token.chars().count() >= 16 { 4 } else { 0 };
    let start: String = token.chars().take(shown).collect();
    format!("{start}…")
}

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    faults: Faults,
    subscribers: Subscribers<Happened>,
}

#[derive(Default)]
struct State {
    answers: HashMap<String, Value>,
    /// With which every token begins that is somebody's without having been named.
    anybody: Option<String>,
    introspections: Vec<String>,
    violations: Vec<String>,
}

impl State {
    fn answer(&self, token: &str) -> Value {
        if let Some(answer) = self.answers.get(token) {
            return answer.clone();
        }
        if self.anybody.as_ref().is_some_and(|prefix| token.starts_with(prefix)) {
            return active(token, None, &["flowmesh:*"]);
        }
        json!({"active": false, "reason": "unknown token"})
    }
}

/// The answer about a personal access token without expiry.
fn active(sub: &str, email: Option<&str>, scopes: &[&str]) -> Value {
    let mut answer = json!({
        "active": true,
        "sub": sub,
        "username": sub,
        "role": "user",
        "scopes": scopes,
        "scope": scopes.join(" "),
        "token_type": "pat",
        "iat": Timestamp::now().as_second(),
        "source": "native",
    });
    if let Some(email) = email {
        answer["email"] = email.into();
    }
    answer
}

impl LumId {
    /// Serves at `listen`, for example `127.0.0.1:0`.
    pub async fn start(listen: &str) -> io::Result<Self> {
        let inner = Arc::new(Inner::default());
        let server = Server::start(listen, {
            let inner = inner.clone();
            move |request, _| handle(inner.clone(), request)
        })
        .await?;
        Ok(Self { server, inner })
    }

    /// `http://127.0.0.1:PORT`
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// The port it has.
    pub(crate) fn server(&self) -> Arc<Server> {
        self.server.clone()
    }

    /// Closes the port and every connection; the state stays.
    pub async fn stop(&self) {
        self.server.stop().await;
    }

    /// Listens again on the same port.
    pub async fn resume(&self) -> io::Result<()> {
        self.server.resume().await
    }

    /// How to answer from now on.
    pub fn fail_with(&self, fault: Fault) {
        self.inner.faults.set(fault);
    }

    /// Answers properly from now on.
    pub fn heal(&self) {
        self.inner.faults.heal();
    }

    /// Answers every question about `token` with this JSON, whether or not it makes sense.
    pub fn put(&self, token: &str, answer: Value) {
        lock(&self.inner.state).answers.insert(token.to_owned(), answer);
    }

    /// Makes `token` an active personal access token without expiry.
    pub fn user(&self, token: &str, sub: &str, email: Option<&str>, scopes: &[&str]) {
        self.put(token, active(sub, email, scopes));
    }

    /// Makes every token that begins so an active one, each of a user of its own: the token is the `sub`.
    pub fn anybody(&self, prefix: &str) {
        lock(&self.inner.state).anybody = Some(prefix.to_owned());
    }

    /// Makes `token` inactive.
    pub fn revoke(&self, token: &str) {
        self.put(token, json!({"active": false, "reason": "revoked"}));
    }

    /// The tokens that were asked about, in order; also those whose answer a fault took away.
    pub fn introspections(&self) -> Vec<String> {
        lock(&self.inner.state).introspections.clone()
    }

    /// How many times a token was asked about.
    pub fn introspection_count(&self) -> usize {
        lock(&self.inner.state).introspections.len()
    }

    /// Requests that departed from the contract.
    pub fn violations(&self) -> Vec<String> {
        lock(&self.inner.state).violations.clone()
    }

    /// A running account of what is asked from now on.
    pub fn subscribe(&self) -> mpsc::UnboundedReceiver<Happened> {
        self.inner.subscribers.subscribe()
    }
}

async fn handle(inner: Arc<Inner>, request: Request) -> Answer {
    let (parts, body) = request.into_parts();
    // A body that ends before its time comes from a client who has gone.
    let body = to_bytes(body, 1 << 20).await.map_err(|_| Closed)?;
    let asked = parse(&parts, &body);
    match &asked {
        Ok(token) => lock(&inner.state).introspections.push(token.clone()),
        Err(violation) => lock(&inner.state).violations.push(violation.clone()),
    }
    let work = async {
        match asked {
            Ok(token) => introspect(&inner, token),
            Err(violation) => super::json(
                StatusCode::BAD_REQUEST,
                &json!({"error": "invalid_request", "error_description": violation}),
            ),
        }
    };
    fault::answer(inner.faults.next(), work).await
}

/// The token of a proper request, or what is wrong with it.
fn parse(parts: &Parts, body: &Bytes) -> Result<String, String> {
    if parts.method != Method::POST || parts.uri.path() != "/oauth/introspect" {
        return Err(format!("{} {}", parts.method, parts.uri.path()));
    }
    if parts.uri.query().is_some() {
        return Err("a query string".to_owned());
    }
    if parts.headers.contains_key(header::AUTHORIZATION) {
        return Err("client authentication, which lum.id does not ask for".to_owned());
    }
    let media_type = media_type(&parts.headers);
    if media_type != "application/x-www-form-urlencoded" {
        return Err(format!("content type {media_type:?}"));
    }
    let body = std::str::from_utf8(body).map_err(|_| "a body that is not UTF-8".to_owned())?;
    let mut fields = body.split('&').filter(|field| !field.is_empty());
    match (fields.next(), fields.next()) {
        (Some(field), None) => match field.split_once('=').map(|(n, v)| (decode(n), decode(v))) {
            Some((name, token)) if name == "token" && !token.is_empty() => Ok(token),
            _ => Err("no field `token`".to_owned()),
        },
        (None, _) => Err("an empty form".to_owned()),
        (Some(_), Some(_)) => Err("more than one form field".to_owned()),
    }
}

fn decode(text: &str) -> String {
    let text = text.replace('+', " ");
    percent_decode_str(&text).decode_utf8_lossy().into_owned()
}

fn introspect(inner: &Inner, token: String) -> Response {
    let mut answer = lock(&inner.state).answer(&token);
    let expires = answer["exp"].as_i64().filter(|exp| *exp != 0);
    if answer["active"] == true && expires.is_some_and(|exp| exp <= Timestamp::now().as_second()) {
        answer = json!({"active": false, "reason": "expired"});
    }
    inner.subscribers.publish(&Happened::Introspected {
        token,
        active: answer["active"] == true,
        sub: answer["sub"].as_str().map(ToOwned::to_owned),
    });
    super::json(StatusCode::OK, &answer)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{super::testing::client, *};

    async fn ask(lum_id: &LumId, token: &str) -> Value {
        let response =
            client().post(format!("{}/oauth/introspect", lum_id.url())).form(&[("token", token)]).send().await.unwrap();
        assert_eq!(response.status(), 200);
        response.json().await.unwrap()
    }

    #[tokio::test]
    async fn a_token_is_active_until_it_is_revoked_or_expires() {
        let lum_id = LumId::start("127.0.0.1:0").await.unwrap();
        let odd = "a+b c%&=ü";
        lum_id.user(odd, "user-1", Some("a@example.com"), &["*", "qa:x"]);
        let answer = ask(&lum_id, odd).await;
        assert_eq!(answer["active"], true);
        assert_eq!(answer["sub"], "user-1");
        assert_eq!(answer["email"], "a@example.com");
        assert_eq!(answer["scopes"], json!(["*", "qa:x"]));
        assert_eq!(answer["scope"], "* qa:x");
        assert_eq!(answer.get("exp"), None);

        lum_id.revoke(odd);
        assert_eq!(ask(&lum_id, odd).await, json!({"active": false, "reason": "revoked"}));
        lum_id.put("old", json!({"active": true, "sub": "u", "exp": 1}));
        assert_eq!(ask(&lum_id, "old").await["active"], false);
        lum_id.put("pat", json!({"active": true, "sub": "u", "exp": 0}));
        assert_eq!(ask(&lum_id, "pat").await["active"], true);
        assert_eq!(ask(&lum_id, "?").await["reason"], "unknown token");
        lum_id.anybody("any-");
        assert_eq!(ask(&lum_id, "any-1").await["sub"], "any-1");
        assert_eq!(ask(&lum_id, "another").await["active"], false);
        assert_eq!(lum_id.introspections(), [odd, odd, "old", "pat", "?", "any-1", "another"]);
        assert_eq!(lum_id.violations(), Vec::<String>::new());
    }

    #[tokio::test]
    async fn a_departure_from_the_contract_is_refused_and_recorded() {
        let lum_id = LumId::start("127.0.0.1:0").await.unwrap();
        let url = format!("{}/oauth/introspect", lum_id.url());
        let json = client().post(&url).json(&json!({"token": "t"}));
        let get = client().get(&url);
        let basic = client().post(&url).basic_auth("id", Some("secret"));
        let two = client().post(&url).form(&[("token", "t"), ("hint", "x")]);
        for request in [json, get, basic.form(&[("token", "t")]), two] {
            assert_eq!(request.send().await.unwrap().status(), 400);
        }
        assert_eq!(lum_id.violations().len(), 4);
        assert_eq!(lum_id.introspection_count(), 0);
    }

    #[tokio::test]
    async fn a_stopped_stand_in_refuses_connections_and_comes_back_on_its_port_with_its_state() {
        let lum_id = LumId::start("127.0.0.1:0").await.unwrap();
        lum_id.user("t", "user-1", None, &[]);
        let url = lum_id.url();
        ask(&lum_id, "t").await;
        let keeps_alive = reqwest::Client::builder().no_proxy().build().unwrap();
        let ask_again = || {
            let request = keeps_alive.post(format!("{url}/oauth/introspect"));
            request.form(&[("token", "t")]).send()
        };
        ask_again().await.unwrap();
        lum_id.stop().await;
        lum_id.stop().await;
        assert!(ask_again().await.unwrap_err().is_connect());
        lum_id.resume().await.unwrap();
        lum_id.resume().await.unwrap();
        assert_eq!(lum_id.url(), url);
        assert_eq!(ask(&lum_id, "t").await["sub"], "user-1");
        assert!(LumId::start(&lum_id.server.address().to_string()).await.is_err());

        drop(lum_id);
        super::super::testing::eventually("the port is closed", async || ask_again().await.is_err()).await;
    }

    #[tokio::test]
    async fn faults_come_and_go() {
        let lum_id = LumId::start("127.0.0.1:0").await.unwrap();
        lum_id.user("t", "user-1", None, &[]);
        let send = || client().post(format!("{}/oauth/introspect", lum_id.url())).form(&[("token", "t")]).send();

        lum_id.fail_with(Fault::retry_after(503, 7).times(1));
        let response = send().await.unwrap();
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["retry-after"], "7");
        assert_eq!(send().await.unwrap().status(), 200);

        lum_id.fail_with(Fault::Reset);
        let response = send().await.expect("the head of the answer arrives");
        assert_eq!(response.status(), 200);
        assert!(response.bytes().await.is_err(), "the body is cut off");

        lum_id.fail_with(Fault::Close);
        assert!(send().await.is_err());

        lum_id.fail_with(Fault::Body("not json".to_owned()));
        let response = send().await.unwrap();
        assert_eq!(response.headers()["content-type"], "application/json");
        assert_eq!(response.text().await.unwrap(), "not json");

        let patience = Duration::from_millis(50);
        lum_id.fail_with(Fault::Hang);
        assert!(tokio::time::timeout(patience, send()).await.is_err());
        lum_id.fail_with(Fault::Slow(patience));
        let asked = std::time::Instant::now();
        assert_eq!(send().await.unwrap().status(), 200);
        assert!(asked.elapsed() >= patience);

        lum_id.heal();
        assert_eq!(ask(&lum_id, "t").await["active"], true);
        assert_eq!(lum_id.introspection_count(), 8);
    }

    #[tokio::test]
    async fn the_running_account_gives_no_token_away() {
        let lum_id = LumId::start("127.0.0.1:0").await.unwrap();
        let mut account = lum_id.subscribe();
        lum_id.user("lum_pat_0123456789abcdef", "user-1", None, &[]);
        ask(&lum_id, "lum_pat_0123456789abcdef").await;
        ask(&lum_id, "short").await;
        let lines = [account.recv().await.unwrap().to_string(), account.recv().await.unwrap().to_string()];
        assert_eq!(lines, ["introspected lum_… → active, user-1", "introspected … → inactive"]);
    }
}
