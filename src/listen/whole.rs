//! Answers leave in one piece.
//!
//! A small answer is handed to its connection as headers, message and trailers, and the connection, on another thread,
//! may well send the headers before it has the rest. A Tollgate that is killed in that moment has begun an answer, and
//! an answer that has begun Envoy does not ask another Tollgate for: the request would fail, where one that was never
//! answered is simply asked again. So a connection writes nothing while an answer is being handed over, and then
//! everything at once, which saves some writes as well.
//!
//! An answer that is still waiting for its next part (a stream) is not waited for, and nothing is for longer than
//! [`PATIENCE`]: the worst of it is what would be without all this.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use axum::http::{Request, Response};
use http_body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;
use tonic::body::Body;
use tonic::transport::server::Connected;
use tower::{Layer, Service};

/// A thousand times what handing over takes.
const PATIENCE: Duration = Duration::from_millis(5);
/// How often in a row a connection looks again for more to send, when one answer after the other is finished.
const LOOKS: u8 = 4;

/// What a connection and the answers on it know of each other.
#[derive(Clone, Debug, Default)]
pub struct Cork(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// Answers that are being handed over.
    held: usize,
    /// Whether one was finished that the connection may not have seen all of.
    finished: bool,
    waiting: Option<Waker>,
}

impl Cork {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hold(&self) -> Hold {
        self.state().held += 1;
        Hold(self.clone())
    }
}

/// An answer that is being handed over, until it is dropped.
#[derive(Debug)]
pub struct Hold(Cork);

impl Drop for Hold {
    fn drop(&mut self) {
        let waiting = {
            let mut state = self.0.state();
            state.held -= 1;
            state.finished = true;
            if state.held == 0 { state.waiting.take() } else { None }
        };
        if let Some(waiting) = waiting {
            waiting.wake();
        }
    }
}

/// A connection that waits for whole answers.
#[derive(Debug)]
pub struct Whole<IO> {
    io: IO,
    cork: Cork,
    patience: Option<Pin<Box<Sleep>>>,
    looks: u8,
}

impl<IO> Whole<IO> {
    pub fn new(io: IO) -> Self {
        Self { io, cork: Cork::default(), patience: None, looks: 0 }
    }

    /// Ready when nothing is being handed over, and whatever was has been seen.
    fn poll_whole(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        {
            let mut state = self.cork.state();
            if state.held == 0 {
                self.patience = None;
                if !std::mem::take(&mut state.finished) || self.looks == LOOKS {
                    self.looks = 0;
                    return Poll::Ready(());
                }
                self.looks += 1;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            state.waiting = Some(cx.waker().clone());
        }
        let patience = self.patience.get_or_insert_with(|| Box::pin(tokio::time::sleep(PATIENCE)));
        ready!(patience.as_mut().poll(cx));
        self.patience = None;
        Poll::Ready(())
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Whole<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Whole<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_whole(cx));
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl<IO> Connected for Whole<IO> {
    type ConnectInfo = Cork;

    fn connect_info(&self) -> Cork {
        self.cork.clone()
    }
}

/// Marks answers while they are handed over.
#[derive(Clone, Copy, Debug, Default)]
pub struct WholeAnswers;

impl<S> Layer<S> for WholeAnswers {
    type Service = Marking<S>;

    fn layer(&self, inner: S) -> Marking<S> {
        Marking(inner)
    }
}

/// A service whose answers are marked.
#[derive(Clone, Debug)]
pub struct Marking<S>(S);

impl<S, B> Service<Request<B>> for Marking<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
{
    type Response = Response<HandedOver>;
    type Error = S::Error;
    type Future = Marked<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let cork = request.extensions().get::<Cork>().cloned();
        Marked { answer: self.0.call(request), cork }
    }
}

pin_project_lite::pin_project! {
    /// An answer on its way, and the connection that it is for.
    pub struct Marked<F> {
        #[pin]
        answer: F,
        cork: Option<Cork>,
    }
}

impl<F, E> Future for Marked<F>
where
    F: Future<Output = Result<Response<Body>, E>>,
{
    type Output = Result<Response<HandedOver>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let answer = ready!(this.answer.poll(cx))?;
        // From before the connection has the headers until it has dropped the body, after the trailers.
        let hold = this.cork.as_ref().map(Cork::hold);
        Poll::Ready(Ok(answer.map(|body| HandedOver { body, hold })))
    }
}

/// An answer's body, and its mark.
#[derive(Debug)]
pub struct HandedOver {
    body: Body,
    hold: Option<Hold>,
}

impl http_body::Body for HandedOver {
    type Data = <Body as http_body::Body>::Data;
    type Error = <Body as http_body::Body>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if frame.is_pending() {
            self.hold = None;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn nothing_is_written_while_an_answer_is_handed_over_and_everything_afterwards() {
        let (io, mut peer) = tokio::io::duplex(64);
        let mut connection = Whole::new(io);
        connection.write_all(b"a").await.expect("nobody holds it");
        assert_eq!(peer.read_u8().await.expect("a byte"), b'a');
        let (first, second) = (connection.cork.hold(), connection.cork.hold());
        let mut writing = polled_by_hand(connection.write_all(b"b"));
        assert!(writing().is_pending());
        drop(first);
        assert!(writing().is_pending(), "another one is being handed over");
        drop(second);
        assert!(writing().is_pending(), "once more round for what may have come with it");
        assert!(writing().is_ready());
        assert_eq!(peer.read_u8().await.expect("a byte"), b'b');
    }

    fn polled_by_hand<T>(future: impl Future<Output = T>) -> impl FnMut() -> Poll<T> {
        let mut future = Box::pin(future);
        move || future.as_mut().poll(&mut Context::from_waker(Waker::noop()))
    }

    #[tokio::test]
    async fn an_answer_that_never_ends_is_not_waited_for() {
        let (io, mut peer) = tokio::io::duplex(64);
        let mut connection = Whole::new(io);
        let _hold = connection.cork.hold();
        connection.write_all(b"a").await.expect("written after a while");
        assert_eq!(peer.read_u8().await.expect("a byte"), b'a');
    }

    #[tokio::test]
    async fn one_answer_after_the_other_does_not_keep_the_connection_from_writing() {
        let (io, mut peer) = tokio::io::duplex(64);
        let mut connection = Whole::new(io);
        let cork = connection.cork.clone();
        let mut writing = polled_by_hand(connection.write_all(b"a"));
        let mut polls = 1;
        drop(cork.hold());
        while writing().is_pending() {
            drop(cork.hold());
            polls += 1;
        }
        assert_eq!(polls, u16::from(LOOKS) + 1);
        assert_eq!(peer.read_u8().await.expect("a byte"), b'a');
    }

    /// A stream between two messages.
    struct Waiting;

    impl http_body::Body for Waiting {
        type Data = <Body as http_body::Body>::Data;
        type Error = tonic::Status;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
            Poll::Pending
        }
    }

    #[test]
    fn a_stream_that_waits_for_its_next_message_holds_nothing() {
        let cork = Cork::default();
        let mut body = HandedOver { body: Body::new(Waiting), hold: Some(cork.hold()) };
        let polled = http_body::Body::poll_frame(Pin::new(&mut body), &mut Context::from_waker(Waker::noop()));
        assert!(polled.is_pending());
        assert_eq!(cork.state().held, 0);
    }
}
