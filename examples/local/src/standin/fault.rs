//! The ways in which a stand-in can let its caller down.

use std::{sync::Mutex, time::Duration};

use axum::{
    body::{Body, Bytes, to_bytes},
    http::{
        StatusCode,
        header::{CONTENT_LENGTH, HeaderName, HeaderValue},
    },
    response::Response,
};
use futures_util::{StreamExt, stream};

use super::{
    lock,
    server::{Answer, Closed},
    text,
};

/// How to answer the next requests.
///
/// Unless it says otherwise, a fault takes the place of the work: nothing is stored or changed.
#[derive(Clone, Debug)]
pub enum Fault {
    /// This status, body and these headers (for example `Retry-After`). The body counts as JSON unless
    /// a `content-type` is among the headers.
    Status(u16, String, Vec<(String, String)>),
    /// The right answer, with the work itself begun only after this long. A caller who has gone away
    /// by then has caused nothing.
    Slow(Duration),
    /// No answer, ever.
    Hang,
    /// Head and half of a body, then the connection is closed.
    Reset,
    /// The connection is closed without a byte of answer.
    Close,
    /// 200 with this body and `content-type: application/json`.
    Body(String),
    /// The work is done and stored, and then the answer goes wrong in this way: what the caller sees of
    /// a success that was lost on its way back.
    AfterEffect(Box<Fault>),
    /// This fault so many times, then none.
    Times(u32, Box<Fault>),
}

impl Fault {
    /// A bare status with an empty JSON object.
    #[must_use]
    pub fn status(status: u16) -> Self {
        Self::Status(status, "{}".to_owned(), Vec::new())
    }

    /// A status with `Retry-After`.
    #[must_use]
    pub fn retry_after(status: u16, seconds: u32) -> Self {
        let headers = vec![("retry-after".to_owned(), seconds.to_string())];
        Self::Status(status, "{}".to_owned(), headers)
    }

    /// The work is done, and the connection closed half-way through the answer.
    #[must_use]
    pub fn lost_answer() -> Self {
        Self::AfterEffect(Box::new(Self::Reset))
    }

    /// This fault `n` times, then none.
    #[must_use]
    pub fn times(self, n: u32) -> Self {
        Self::Times(n, Box::new(self))
    }

    /// Whether the request is worked on in spite of the fault.
    pub(super) fn has_effect(&self) -> bool {
        match self {
            Self::Slow(_) | Self::AfterEffect(_) => true,
            Self::Times(_, fault) => fault.has_effect(),
            _ => false,
        }
    }
}

/// The fault in force, if any.
#[derive(Debug, Default)]
pub(super) struct Faults(Mutex<Option<Fault>>);

impl Faults {
    pub(super) fn set(&self, fault: Fault) {
        *lock(&self.0) = Some(fault);
    }

    pub(super) fn heal(&self) {
        *lock(&self.0) = None;
    }

    /// The fault for the request at hand, counted against [`Fault::Times`].
    pub(super) fn next(&self) -> Option<Fault> {
        let mut current = lock(&self.0);
        match current.as_mut() {
            Some(Fault::Times(0, _)) => {
                *current = None;
                None
            }
            Some(Fault::Times(left, fault)) => {
                let fault = (**fault).clone();
                *left -= 1;
                if *left == 0 {
                    *current = None;
                }
                Some(fault)
            }
            other => other.cloned(),
        }
    }
}

/// Answers one request under `fault`; `work` is what a healthy server would do.
pub(super) async fn answer(fault: Option<Fault>, work: impl Future<Output = Response>) -> Answer {
    match fault {
        None => Ok(work.await),
        Some(Fault::AfterEffect(fault)) => spoil(*fault, work.await).await,
        Some(Fault::Slow(delay)) => {
            tokio::time::sleep(delay).await;
            Ok(work.await)
        }
        Some(fault) => {
            let decoy = r#"{"code": 200, "msg": "never to be read as a whole", "data": null}"#;
            spoil(fault, text(StatusCode::OK, "application/json", decoy)).await
        }
    }
}

/// What becomes of a finished answer under `fault`.
async fn spoil(fault: Fault, answer: Response) -> Answer {
    match fault {
        Fault::Status(status, body, headers) => {
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            let mut response = text(status, "application/json", body);
            for (name, value) in headers {
                if let (Ok(name), Ok(value)) =
                    (HeaderName::try_from(name.as_str()), HeaderValue::try_from(value.as_str()))
                {
                    response.headers_mut().insert(name, value);
                }
            }
            Ok(response)
        }
        Fault::Slow(delay) => {
            tokio::time::sleep(delay).await;
            Ok(answer)
        }
        Fault::Hang => std::future::pending().await,
        Fault::Reset => Ok(half(answer).await),
        Fault::Close => Err(Closed),
        Fault::Body(body) => Ok(text(StatusCode::OK, "application/json", body)),
        Fault::AfterEffect(fault) | Fault::Times(_, fault) => Box::pin(spoil(*fault, answer)).await,
    }
}

/// The answer with its full length announced and only the first half of its body sent.
async fn half(answer: Response) -> Response {
    let (mut parts, body) = answer.into_parts();
    let whole = to_bytes(body, usize::MAX).await.unwrap_or_default();
    parts.headers.insert(CONTENT_LENGTH, HeaderValue::from(whole.len().max(2)));
    let first: Result<Bytes, std::io::Error> = Ok(whole.slice(..whole.len() / 2));
    let rest = stream::once(async {
        // Time for the first half to leave before the connection is dropped.
        tokio::time::sleep(Duration::from_millis(20)).await;
        Err(std::io::Error::other("cut off on purpose"))
    });
    let body = stream::once(std::future::ready(first)).chain(rest);
    Response::from_parts(parts, Body::from_stream(body))
}
