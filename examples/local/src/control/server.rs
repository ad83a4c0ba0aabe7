//! The serving half of [`super`].

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{FromRequest, Path, Query, Request, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::{Balance, Completed, Completion, Count, Delay, Requests, Revocation, Wanted};
use crate::standin::{self, Entry, Server, Task, TruthEntry, Worker, Workflow, same_amount};

/// How long requests under way have when it stops.
const STOP_LIMIT: Duration = Duration::from_secs(2);

/// Whom a [`Control`] is about.
#[derive(Clone)]
pub enum StandIn {
    /// The identity provider.
    LumId(standin::LumId),
    /// Billing.
    Runmesh(standin::Runmesh),
    /// The upstream.
    FlowMesh(standin::FlowMesh),
}

impl StandIn {
    fn name(&self) -> &'static str {
        match self {
            Self::LumId(_) => "lum.id",
            Self::Runmesh(_) => "Runmesh",
            Self::FlowMesh(_) => "FlowMesh",
        }
    }

    fn server(&self) -> Arc<Server> {
        match self {
            Self::LumId(lum_id) => lum_id.server(),
            Self::Runmesh(runmesh) => runmesh.server(),
            Self::FlowMesh(flowmesh) => flowmesh.server(),
        }
    }

    /// Where it serves, whether or not it does at the moment.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.server().address()
    }

    /// Closes its port and every connection.
    pub async fn stop(&self) {
        self.server().stop().await;
    }
}

/// A bound control listener. Gone with its handle.
#[derive(Debug)]
pub struct Control {
    address: SocketAddr,
    stop: CancellationToken,
    serving: JoinHandle<io::Result<()>>,
}

impl Control {
    /// Serves at `listen`, for example `127.0.0.1:0`.
    ///
    /// # Errors
    /// When it cannot be listened on.
    pub async fn start(listen: &str, standin: StandIn) -> io::Result<Self> {
        let listener = TcpListener::bind(listen).await?;
        let address = listener.local_addr()?;
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        let serve = axum::serve(listener, router(standin)).with_graceful_shutdown(stopped);
        let serving = tokio::spawn(serve.into_future());
        Ok(Self { address, stop, serving })
    }

    /// The address that was bound.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://ADDRESS`, for the clients.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Takes no more requests, and lets those under way be answered.
    pub async fn stop(mut self) {
        self.stop.cancel();
        // What is not answered by then has nobody who waits for it.
        let _ = tokio::time::timeout(STOP_LIMIT, &mut self.serving).await;
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.stop.cancel();
        self.serving.abort();
    }
}

/// What was asked for cannot be had.
struct Refusal(StatusCode, String);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0, Json(json!({"detail": self.1}))).into_response()
    }
}

/// A JSON body; one that is not as agreed is refused like everything else.
struct Told<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Told<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        match Json::from_request(request, state).await {
            Ok(Json(told)) => Ok(Self(told)),
            Err(rejection) => Err(Refusal(rejection.status(), rejection.body_text())),
        }
    }
}

fn router(standin: StandIn) -> Router {
    let name = standin.name();
    let server = standin.server();
    let own = match standin {
        StandIn::LumId(lum_id) => of_lum_id(lum_id),
        StandIn::Runmesh(runmesh) => of_runmesh(runmesh),
        StandIn::FlowMesh(flowmesh) => of_flowmesh(flowmesh),
    };
    Router::new()
        .route("/stop", post(stop))
        .route("/resume", post(resume))
        .with_state(server)
        .route("/healthz", get(async move || Json(json!({"standin": name}))))
        .merge(own)
        .fallback(async move || Refusal(StatusCode::NOT_FOUND, format!("{name} has no such control")))
        .method_not_allowed_fallback(async || Refusal(StatusCode::METHOD_NOT_ALLOWED, "another method".to_owned()))
}

async fn stop(State(server): State<Arc<Server>>) -> StatusCode {
    server.stop().await;
    StatusCode::NO_CONTENT
}

async fn resume(State(server): State<Arc<Server>>) -> Result<StatusCode, Refusal> {
    match server.resume().await {
        Ok(()) => Ok(StatusCode::NO_CONTENT),
        Err(error) => {
            let detail = format!("cannot listen on {} again: {error}", server.address());
            Err(Refusal(StatusCode::INTERNAL_SERVER_ERROR, detail))
        }
    }
}

fn of_lum_id(lum_id: standin::LumId) -> Router {
    type Of = State<standin::LumId>;
    Router::new()
        .route("/introspections", get(async |State(of): Of| Json(Count { count: of.introspection_count() })))
        .route("/violations", get(async |State(of): Of| Json(of.violations())))
        .route(
            "/revoke",
            post(async |State(of): Of, Told(Revocation { token }): Told<Revocation>| {
                of.revoke(&token);
                StatusCode::NO_CONTENT
            }),
        )
        .with_state(lum_id)
}

fn of_runmesh(runmesh: standin::Runmesh) -> Router {
    type Of = State<standin::Runmesh>;
    Router::new()
        .route("/entries", get(async |State(of): Of| Json::<Vec<Entry>>(of.entries())))
        .route("/checks", get(async |State(of): Of| Json::<Vec<Value>>(of.checks())))
        .route("/violations", get(async |State(of): Of| Json(of.violations())))
        .route("/balance", post(set_balance))
        .with_state(runmesh)
}

async fn set_balance(
    State(runmesh): State<standin::Runmesh>,
    Told(Balance { email, balance }): Told<Balance>,
) -> Result<StatusCode, Refusal> {
    if !same_amount(&balance, &balance) {
        return Err(Refusal(StatusCode::BAD_REQUEST, format!("{balance:?} is no amount")));
    }
    runmesh.set_balance(&email, &balance);
    Ok(StatusCode::NO_CONTENT)
}

fn of_flowmesh(flowmesh: standin::FlowMesh) -> Router {
    type Of = State<standin::FlowMesh>;
    Router::new()
        .route("/tasks/{id}", get(task))
        .route("/workers", get(async |State(of): Of| Json::<Vec<Worker>>(of.workers())))
        .route("/workflows", get(async |State(of): Of| Json::<Vec<Workflow>>(of.workflows())))
        .route("/truth", get(async |State(of): Of| Json::<Vec<TruthEntry>>(of.truth())))
        .route("/requests", get(requests))
        .route("/complete", post(complete))
        .route("/dispatch-delay", post(dispatch_delay))
        .with_state(flowmesh)
}

async fn task(State(flowmesh): State<standin::FlowMesh>, Path(id): Path<String>) -> Result<Json<Task>, Refusal> {
    match flowmesh.task(&id) {
        Some(task) => Ok(Json(task)),
        None => Err(Refusal(StatusCode::NOT_FOUND, format!("FlowMesh knows no task {id}"))),
    }
}

async fn requests(State(flowmesh): State<standin::FlowMesh>, Query(wanted): Query<Wanted>) -> Json<Requests> {
    let mut requests = flowmesh.requests();
    requests.retain(|seen| {
        wanted.method.as_ref().is_none_or(|method| *method == seen.method)
            && wanted.path.as_ref().is_none_or(|path| *path == seen.path_and_query)
    });
    Json(Requests { count: requests.len(), last: requests.pop() })
}

async fn complete(
    State(flowmesh): State<standin::FlowMesh>,
    Told(Completion { task_ids, outcome }): Told<Completion>,
) -> Json<Completed> {
    let ids: Vec<_> = task_ids.iter().map(String::as_str).collect();
    Json(Completed { ended: flowmesh.complete_merged(&ids, outcome) })
}

async fn dispatch_delay(
    State(flowmesh): State<standin::FlowMesh>,
    Told(Delay { seconds }): Told<Delay>,
) -> Result<StatusCode, Refusal> {
    let delay = Duration::try_from_secs_f64(seconds)
        .map_err(|error| Refusal(StatusCode::BAD_REQUEST, format!("{seconds} seconds: {error}")))?;
    flowmesh.options(|options| options.dispatch_delay = delay);
    Ok(StatusCode::NO_CONTENT)
}
