//! What the file says, and how.
//!
//! The first 16 bytes are all that the earlier form had, and mean the same: whoever goes back to a version of then still
//! finds the gap, and a file of then is one that remembers nobody's start.

use std::fmt::Debug;
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use uuid::Uuid;

use super::Span;

/// Within one sector, so that a page is written whole or not at all.
pub const BYTES: usize = 64;
const EARLIER: usize = 16;

/// What the file says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Page {
    /// When submissions went through without a row.
    pub span: Option<Span>,
    /// So may others have since, and the file need not be told.
    pub is_open: bool,
    pub memory: Option<Memory>,
}

/// Of which start of a replica the file has all that was missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    pub incarnation: Uuid,
    /// When it was last sure that the file can be written.
    pub as_of: Timestamp,
}

/// Where pages go.
pub trait Place: Debug + Send + Sync {
    /// Durable when it returns well.
    fn write(&self, page: &[u8; BYTES]) -> std::io::Result<()>;
}

impl Place for File {
    fn write(&self, page: &[u8; BYTES]) -> std::io::Result<()> {
        // Of what hangs in the second step a killed process has left the first one's to the next.
        self.write_all_at(page, 0)?;
        self.sync_data()
    }
}

impl Page {
    /// What a file says, and whether it has all of its bytes. One that was not made to its end says nothing: nothing was missing
    /// yet.
    pub fn read(file: &File) -> std::io::Result<(Self, bool)> {
        let mut whole = [0; BYTES];
        if read(file, &mut whole)? {
            return Ok((Self::parse(&whole), true));
        }
        let (mut page, mut earlier) = ([0; BYTES], [0; EARLIER]);
        if read(file, &mut earlier)? {
            page[..EARLIER].copy_from_slice(&earlier);
        }
        Ok((Self::parse(&page), false))
    }

    /// When submissions may be missing, as of `now`.
    pub fn missing(self, now: Timestamp) -> Option<Span> {
        let (since, until) = self.span?;
        // As exact as a ledger has it: it is compared with what was read back from there.
        let now = Timestamp::from_millisecond(now.as_millisecond()).unwrap_or(now);
        Some((since, if self.is_open { until.max(now) } else { until }))
    }

    pub fn to_bytes(self) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        let (since, until) =
            self.span.map_or((0, 0), |(since, until)| (since.as_millisecond(), until.as_millisecond()));
        bytes[..8].copy_from_slice(&since.to_le_bytes());
        bytes[8..16].copy_from_slice(&until.to_le_bytes());
        if let Some(Memory { incarnation, as_of }) = self.memory {
            bytes[16..32].copy_from_slice(incarnation.as_bytes());
            bytes[32..40].copy_from_slice(&as_of.as_millisecond().to_le_bytes());
        }
        bytes[40] = u8::from(self.is_open);
        bytes
    }

    fn parse(bytes: &[u8; BYTES]) -> Self {
        let incarnation = Uuid::from_slice(&bytes[16..32]).ok().filter(|id| !id.is_nil());
        Self {
            span: time(&bytes[..8]).zip(time(&bytes[8..16])),
            is_open: bytes[40] != 0,
            memory: incarnation.zip(time(&bytes[32..40])).map(|(incarnation, as_of)| Memory { incarnation, as_of }),
        }
    }
}

/// What the file beside the ledger at `path` holds as of `now`, which is left as it is.
///
/// # Errors
/// When it is there and cannot be read.
pub fn left(path: &Path, now: Timestamp) -> std::io::Result<Option<Span>> {
    match File::open(beside(path)).and_then(|file| Page::read(&file)) {
        Ok((page, _)) => Ok(page.missing(now)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

pub fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".gap");
    PathBuf::from(name)
}

/// Whether there are so many bytes.
fn read(file: &File, bytes: &mut [u8]) -> std::io::Result<bool> {
    match file.read_exact_at(bytes, 0) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

fn time(bytes: &[u8]) -> Option<Timestamp> {
    let ms = i64::from_le_bytes(bytes.try_into().ok()?);
    Timestamp::from_millisecond(ms).ok().filter(|_| ms != 0)
}
