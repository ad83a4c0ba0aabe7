//! Messages off a stream of gRPC's.

use std::marker::PhantomData;

use bytes::Buf as _;
use prost::Message;
use tonic::Status;
use tonic::codec::{BufferSettings, DecodeBuf, Decoder};

/// Decodes out of the whole message, of which every field is then a part. Out of tonic's buffer itself an
/// eighth of a log entry's instructions was moving that on, for each byte of a number that is read.
#[derive(Debug)]
pub struct Whole<M> {
    buffers: BufferSettings,
    message: PhantomData<fn() -> M>,
}

impl<M> Whole<M> {
    #[must_use]
    pub fn new(buffers: BufferSettings) -> Self {
        Self { buffers, message: PhantomData }
    }
}

impl<M: Message + Default> Decoder for Whole<M> {
    type Item = M;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<M>, Status> {
        let message = buffer.copy_to_bytes(buffer.remaining());
        M::decode(message).map(Some).map_err(|error| Status::internal(error.to_string()))
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.buffers
    }
}
