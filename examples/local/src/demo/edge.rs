//! Who gets in, and as whom.

use anyhow::{Context as _, Result};
use serde_json::json;
use tollgate_local::{
    stack::{ALICE, PAUPER},
    standin::Seen,
};

use super::Demo;

const MISSING: &str = r#"401 {"detail":"Missing bearer token"}"#;
const UNKNOWN: &str = r#"401 {"detail":"No identity provider accepted the token"}"#;
const POOR: &str = concat!(
    r#"{"detail":"Insufficient balance ($0.00). "#,
    r#"Top up at https://lum.id/app/billing before submitting workflows."}"#
);

impl Demo {
    pub(super) async fn identity(&mut self) -> Result<()> {
        let answer = self.get("/healthz", None).await?;
        self.narrator.compare("health without a token", 200, answer.status);

        let answer = self.get("/api/v1/workflows", None).await?;
        self.narrator.compare("no token", MISSING, answer.whole());
        self.narrator.compare("  its www-authenticate", "Bearer", answer.header("www-authenticate"));
        self.narrator.compare("  its content-type", "application/json", answer.header("content-type"));

        let answer = self.get("/api/v1/workflows", Some("nonsense")).await?;
        self.narrator.compare("bad token", UNKNOWN, answer.whole());
        let challenge = r#"Bearer error="invalid_token""#;
        self.narrator.compare("  its www-authenticate", challenge, answer.header("www-authenticate"));

        let two = self.request("GET", "/api/v1/workflows", Some(ALICE.token))?.bearer_auth(PAUPER.token);
        let answer = self.send(two).await?;
        self.narrator.compare("two tokens at once", MISSING, answer.whole());

        let spoofed = self
            .submission(&ALICE, 1)?
            .header("X-FlowMesh-Principal-Id", "admin")
            .header("x-flowmesh-supplier-id", "mallory")
            .header("x_flowmesh_scopes", "root")
            .header("x-flowmesh-anything", "at all");
        self.first = Some(self.submit("submission by alice, posing as admin", ALICE, spoofed).await?);
        let seen = self.last_seen("POST", "/api/v1/workflows").await?;
        let (principal, others): (Vec<_>, Vec<_>) =
            identity_headers(&seen).into_iter().partition(|(name, _)| name.contains("id") && name != "org-id");
        let expected = "external-id=user-alice principal-id=user-alice";
        self.narrator.compare("  its principal at FlowMesh", expected, shown(&principal));
        let expected = "org-id=lumid principal-type=user scopes=*";
        self.narrator.compare("  all other identity at FlowMesh", expected, shown(&others));
        self.narrator.compare(
            "  its authorization at FlowMesh",
            "none",
            seen.header("authorization").unwrap_or("none"),
        );
        Ok(())
    }

    pub(super) async fn guard(&mut self) -> Result<()> {
        let answer = self.send(self.submission(&PAUPER, 1)?).await?;
        self.narrator.compare("submission by the pauper", 402, answer.status);
        self.narrator.compare("  its body", POOR, &answer.body);
        let asked = self.world.runmesh.checks().await?.pop().unwrap_or_default();
        let expected = json!({"userEmail": PAUPER.email, "requiredAmount": "0.01"});
        self.narrator.compare("  the question to Runmesh", expected, asked);
        let answer = self.get("/api/v1/workflows", Some(PAUPER.token)).await?;
        self.narrator.compare("the pauper may read", 200, answer.status);

        let before = self.world.flowmesh.workflows().await?.len();
        for path in ["/api/v1/%77orkflows", "/api/v1%2Fworkflows", "//api/v1/workflows"] {
            let trick = self.request("POST", path, Some(PAUPER.token))?.body("- name: free\n");
            let answer = self.send(trick).await?;
            self.narrator.compare(&format!("the pauper as POST {path}"), 402, answer.status);
        }
        let trick = self.request("POST", "/api/v1/%77orkflows", None)?.body("- name: free\n");
        let answer = self.send(trick).await?;
        self.narrator.compare("nobody as POST /api/v1/%77orkflows", MISSING, answer.whole());
        let new = self.world.flowmesh.workflows().await?.len() - before;
        self.narrator.compare("  workflows that came of it", 0, new);
        Ok(())
    }

    /// The last request of this kind that came to FlowMesh.
    pub(super) async fn last_seen(&self, method: &str, path: &str) -> Result<Seen> {
        let requests = self.world.flowmesh.requests_of(method, path).await?;
        requests.last.with_context(|| format!("{method} {path} has not come to FlowMesh"))
    }
}

/// All identity headers, however they are spelt, sorted and without their common prefix.
fn identity_headers(seen: &Seen) -> Vec<(String, String)> {
    let headers = seen.headers.iter().filter(|(name, _)| name.replace('_', "-").starts_with("x-flowmesh-"));
    let mut headers: Vec<_> =
        headers.map(|(name, value)| (name.trim_start_matches("x-flowmesh-").to_owned(), value.clone())).collect();
    headers.sort();
    headers
}

fn shown(headers: &[(String, String)]) -> String {
    let headers: Vec<_> = headers.iter().map(|(name, value)| format!("{name}={value}")).collect();
    headers.join(" ")
}
