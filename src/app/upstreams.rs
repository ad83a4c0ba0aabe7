//! The clients of lum.id, FlowMesh and Runmesh, as the settings want them.

use anyhow::anyhow;

use crate::config::{BaseUrl, Config};
use crate::upstream::flowmesh::FlowMesh;
use crate::upstream::lumid::LumId;
use crate::upstream::runmesh::Runmesh;
use crate::upstream::times::Times;
use crate::upstream::{CallError, Http};

/// The clients of the systems on the other side.
pub struct Upstreams {
    pub lum_id: LumId,
    pub flowmesh: FlowMesh,
    /// Absent without billing.
    pub runmesh: Option<Runmesh>,
    /// How long they take.
    pub times: Times,
}

impl Upstreams {
    /// # Errors
    /// When one of them needs TLS and this machine has no trusted root.
    pub fn new(config: &Config) -> anyhow::Result<Self> {
        let limits = &config.limits;
        let times = Times::default();
        let http = |variable: &str, upstream: &BaseUrl, limit| {
            Http::new(upstream, limit).map(|http| http.measured(times.clone())).map_err(|error| {
                let error = CallError::from(error);
                anyhow!("{variable}: cannot speak TLS ({error}): are CA certificates installed, or SSL_CERT_FILE set?")
            })
        };
        let lum_id = http("LUM_ID_BASE_URL", &config.lum_id_base_url, limits.introspection_timeout)?;
        let flowmesh = http("FLOWMESH_BASE_URL", &config.flowmesh.base_url, limits.flowmesh_timeout)?;
        let runmesh = match &config.billing {
            Some(billing) => {
                let http = http("RUNMESH_BILLING_BASE_URL", &billing.base_url, limits.post_timeout)?;
                Some(Runmesh::new(http, billing, limits.preflight_timeout))
            }
            None => None,
        };
        Ok(Self {
            lum_id: LumId::new(lum_id, &config.lum_id_base_url),
            flowmesh: FlowMesh::new(flowmesh, config.flowmesh.clone()),
            runmesh,
            times,
        })
    }
}
