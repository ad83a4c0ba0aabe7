//! Balance preflight: may this principal submit?
//!
//! A gate, not a reservation: it refuses only on Runmesh's clear word, and any trouble lets the submission through,
//! counted, because billing trouble never takes compute offline. Submissions of one principal at the same time share one
//! preflight; nothing is remembered past it.

use std::sync::Arc;
use std::time::Duration;

use crate::config::Limits;
use crate::flight::{Bounds, Flights, GRACE, Joined, Place};
use crate::principal::Principal;
use crate::telemetry::{Metrics, OutcomeLabels, traces};
use crate::upstream::CallError;
use crate::upstream::runmesh::{Balance, Runmesh};

/// What the guard says of a submission.
#[derive(Debug, Clone)]
pub enum Decision {
    Pass,
    /// With the balance for the user's eyes.
    Refuse {
        balance: String,
    },
    /// Runmesh did not say. The submission passes.
    Unanswered(Arc<CallError>),
}

/// Principal id and the e-mail address that is asked about: two tokens may carry different ones for a moment.
type Key = (String, String);

/// The gate. Cheap to clone.
#[derive(Clone)]
pub struct Guard {
    runmesh: Runmesh,
    flights: Flights<Key, Balance>,
    metrics: Metrics,
}

impl Guard {
    #[must_use]
    pub fn new(runmesh: Runmesh, limits: &Limits, metrics: Metrics) -> Self {
        let flights = Flights::new(Bounds {
            in_flight: limits.preflights_in_flight,
            reserved: 0,
            waiting: limits.calls_waiting,
            // Where there is none, a submission passes.
            wait: Duration::ZERO,
            // A little above the client's own, whose error says more.
            limit: limits.preflight_timeout + GRACE,
        });
        Self { runmesh, flights, metrics }
    }

    /// Asks Runmesh. Takes no longer than its time limit for a preflight.
    pub async fn decide(&self, principal: &Principal) -> Decision {
        let Some(email) = &principal.email else {
            self.count("no_email");
            return Decision::Pass;
        };
        let (runmesh, asked) = (self.runmesh.clone(), email.clone());
        let call = move || async move { traces::call("preflight", CallError::kind, runmesh.preflight(&asked)).await };
        let answer = match self.flights.join((principal.id.clone(), email.clone()), Place::Any, || None, call, |_| {}) {
            Joined::Known(balance) => Ok(balance),
            Joined::Waits(ticket) => ticket.answer().await,
        };
        match answer {
            Ok(Balance::Sufficient) => {
                self.count("sufficient");
                Decision::Pass
            }
            Ok(Balance::Insufficient(balance)) => {
                self.count("insufficient");
                Decision::Refuse { balance }
            }
            Err(error) => {
                self.count(error.kind());
                Decision::Unanswered(error)
            }
        }
    }

    /// Preflights in flight, for the gauge; none waits for a place.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.flights.figures().0
    }

    fn count(&self, outcome: &'static str) {
        self.metrics.preflights.get_or_create(&OutcomeLabels { outcome }).inc();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use serde_json::json;
    use wiremock::{Mock, MockServer, ResponseTemplate};

    use super::*;
    use crate::config::{BaseUrl, Billing};
    use crate::upstream::Http;

    async fn guard(limits: &Limits, answer: ResponseTemplate) -> (MockServer, Guard) {
        let server = MockServer::start().await;
        Mock::given(wiremock::matchers::any()).respond_with(answer).mount(&server).await;
        let billing = Billing { base_url: BaseUrl::of_test(&server.uri()), secret: "s".into() };
        let http = Http::new(&billing.base_url, Duration::from_secs(5)).expect("client");
        let runmesh = Runmesh::new(http, &billing, limits.preflight_timeout);
        (server, Guard::new(runmesh, limits, Metrics::unread()))
    }

    fn principal(id: &str, email: Option<&str>) -> Principal {
        Principal { id: id.to_owned(), email: email.map(str::to_owned), scopes: String::new() }
    }

    fn poor() -> ResponseTemplate {
        ResponseTemplate::new(200).set_body_json(json!({"data": {"sufficient": false, "balance": "0.00"}}))
    }

    async fn calls(server: &MockServer) -> usize {
        server.received_requests().await.unwrap_or_default().len()
    }

    #[tokio::test]
    async fn submissions_of_one_principal_at_the_same_time_share_one_preflight_and_nobody_elses() {
        let (server, guard) = guard(&Limits::default(), poor().set_delay(Duration::from_millis(100))).await;
        let mut decisions = tokio::task::JoinSet::new();
        for n in 0..200 {
            let (guard, id) = (guard.clone(), format!("user-{}", n % 2));
            decisions.spawn(async move { guard.decide(&principal(&id, Some("a@example.com"))).await });
        }
        while let Some(decision) = decisions.join_next().await {
            assert!(matches!(decision.expect("no panic"), Decision::Refuse { .. }));
        }
        assert_eq!(calls(&server).await, 2);
        // A balance is not remembered.
        guard.decide(&principal("user-0", Some("a@example.com"))).await;
        assert_eq!(calls(&server).await, 3);
    }

    #[tokio::test]
    async fn who_has_no_e_mail_is_not_asked_about() {
        let (server, guard) = guard(&Limits::default(), poor()).await;
        assert!(matches!(guard.decide(&principal("user-1", None)).await, Decision::Pass));
        assert_eq!(calls(&server).await, 0);
    }

    #[tokio::test]
    async fn every_trouble_of_runmesh_passes_in_time_and_is_counted_by_its_cause() {
        let ok = |body: &str| ResponseTemplate::new(200).set_body_string(body);
        for (answer, kind) in [
            (ResponseTemplate::new(500), "status"),
            (ResponseTemplate::new(401), "status"),
            (ResponseTemplate::new(404), "status"),
            (ResponseTemplate::new(429).insert_header("retry-after", "60"), "status"),
            (ResponseTemplate::new(302).insert_header("location", "/elsewhere"), "status"),
            (ResponseTemplate::new(201).set_body_json(json!({"data": {"sufficient": false}})), "status"),
            (ok("<html>"), "malformed"),
            (ok("[]"), "malformed"),
            (ok("{}"), "malformed"),
            (ok(r#"{"data": null}"#), "malformed"),
            (ok(r#"{"data": [false]}"#), "malformed"),
            (ok(r#"{"data": {"sufficient": "no"}}"#), "malformed"),
            (ok(r#"{"code": 500, "msg": "balance service down"}"#), "malformed"),
            (ok(&format!(r#"{{"data": {{"sufficient": false, "x": "{}"}}}}"#, "x".repeat(50 << 20))), "too_large"),
            (poor().set_delay(Duration::from_secs(5)), "timeout"),
        ] {
            let limits = Limits { preflight_timeout: Duration::from_secs(1), ..Limits::default() };
            let (_server, guard) = guard(&limits, answer).await;
            let started = Instant::now();
            match guard.decide(&principal("user-1", Some("a@example.com"))).await {
                Decision::Unanswered(error) => assert_eq!(error.kind(), kind, "{error}"),
                decided => panic!("{kind}: {decided:?}"),
            }
            assert!(started.elapsed() < Duration::from_secs(3), "{kind}: {:?}", started.elapsed());
            let counted = guard.metrics.preflights.get_or_create(&OutcomeLabels { outcome: kind }).get();
            assert_eq!(counted, 1, "{kind}");
        }
    }

    #[tokio::test]
    async fn more_preflights_than_may_be_in_flight_pass() {
        let limits =
            Limits { preflights_in_flight: 1, preflight_timeout: Duration::from_millis(300), ..Limits::default() };
        let (server, guard) = guard(&limits, poor().set_delay(Duration::from_secs(5))).await;
        let (one, two) = (principal("user-1", Some("a@example.com")), principal("user-2", Some("b@example.com")));
        let (first, second) = tokio::join!(guard.decide(&one), guard.decide(&two));
        let kinds = [first, second].map(|decision| match decision {
            Decision::Unanswered(error) => error.kind(),
            decided => panic!("{decided:?}"),
        });
        assert_eq!(kinds, ["timeout", "busy"]);
        assert_eq!(calls(&server).await, 1);
    }
}
