//! What Check says: let through with these headers, or refuse with this answer. Pure.

use std::sync::Arc;

use crate::identity::Caller;
use crate::route::NotNormal;

/// The answer to a Check.
#[derive(Debug, Clone)]
pub enum Decision {
    /// A public route: no identity, and none that the client made up.
    Public,
    Allow(Allow),
    Deny(Denial),
}

/// A request that goes on as somebody's.
#[derive(Debug, Clone)]
pub struct Allow {
    pub caller: Arc<Caller>,
    pub supplier: Option<Arc<str>>,
    pub submission_id: Option<String>,
    /// Of a result post.
    pub task_id: Option<String>,
    /// Whether the log entry of this request is wanted.
    pub record: bool,
    /// Raw keys of the query that carried the token.
    pub query_keys: Vec<String>,
}

/// A request that ends here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Denial {
    /// FlowMesh could read the path differently.
    Path(NotNormal),
    /// No token, more than one, or a malformed one.
    MissingBearer,
    /// lum.id does not accept it.
    InactiveToken,
    /// The guard's word, with the balance as Runmesh wrote it.
    Balance(String),
    /// Its source has brought too many of those; seconds until the next may be looked at.
    TooManyUnknown { retry_after: u64 },
    /// lum.id gave no answer; seconds after which another try may find one.
    IdentityUnavailable { retry_after: u64 },
}

impl Decision {
    /// A bounded name for logs and metric labels.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Allow(_) => "allowed",
            Self::Deny(Denial::Path(_)) => "path",
            Self::Deny(Denial::MissingBearer) => "missing_bearer",
            Self::Deny(Denial::InactiveToken) => "inactive_token",
            Self::Deny(Denial::Balance(_)) => "insufficient_balance",
            Self::Deny(Denial::TooManyUnknown { .. }) => "too_many_unknown",
            Self::Deny(Denial::IdentityUnavailable { .. }) => "identity_unavailable",
        }
    }
}

impl Denial {
    /// The HTTP status the client sees.
    #[must_use]
    pub fn status(&self) -> u16 {
        match self {
            Self::Path(_) => 400,
            Self::MissingBearer | Self::InactiveToken => 401,
            Self::Balance(_) => 402,
            Self::TooManyUnknown { .. } => 429,
            Self::IdentityUnavailable { .. } => 503,
        }
    }

    /// What the client is told; FlowMesh's own clients show it.
    #[must_use]
    pub fn detail(&self) -> String {
        match self {
            Self::Path(reason) => reason.to_string(),
            Self::MissingBearer => "Missing bearer token".to_owned(),
            Self::InactiveToken => "No identity provider accepted the token".to_owned(),
            Self::Balance(balance) => format!(
                "Insufficient balance (${balance}). Top up at https://lum.id/app/billing before submitting workflows."
            ),
            Self::TooManyUnknown { .. } => "Too many unrecognised tokens".to_owned(),
            Self::IdentityUnavailable { .. } => "Identity provider unavailable".to_owned(),
        }
    }
}
