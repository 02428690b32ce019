//! What the tools that read captures share.

use std::collections::HashMap;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use bytes::Bytes;
use miette::{IntoDiagnostic as _, Result, WrapErr as _};

use crate::capture::{Direction, Entry, Event, Frame, Reader, Track};
use crate::wire::d2m::{DeviceId, FromDevice, PayloadType};

/// Opens a capture.
pub(super) fn open(path: &Path) -> Result<Reader<BufReader<File>>> {
    let shown = path.display();
    let file = File::open(path).into_diagnostic().wrap_err_with(|| format!("{shown} cannot be read"))?;
    Reader::new(BufReader::new(file)).into_diagnostic().wrap_err_with(|| format!("{shown} cannot be used"))
}

/// Which devices connections are of: known from their ClientHello, or because it was known when the recording began.
#[derive(Debug, Default)]
pub(super) struct Devices(HashMap<Track, DeviceId>);

impl Devices {
    /// Takes notice of what an entry says about it.
    pub(super) fn see(&mut self, entry: &Entry) {
        match &entry.event {
            Event::Connect { track, device: Some(device), .. } => drop(self.0.insert(*track, *device)),
            Event::Frame { track, direction: Direction::FromDevice, frame } => {
                if let Some(FromDevice::ClientHello(hello)) = from_device(frame) {
                    self.0.insert(*track, hello.device_id);
                }
            }
            Event::Connect { .. } | Event::Frame { .. } | Event::Close { .. } | Event::End(_) => {}
        }
    }

    pub(super) fn of(&self, track: Track) -> Option<DeviceId> {
        self.0.get(&track).copied()
    }
}

/// What a device said, if all of it was kept and it is a container.
pub(super) fn from_device(frame: &Frame) -> Option<FromDevice> {
    if frame.withheld() == 0 { FromDevice::decode(&frame.kept).ok() } else { None }
}

/// Whether these are bytes of a chat server's, or for it, which a capture does not keep.
pub(super) fn is_proxy(frame: &Bytes) -> bool {
    frame.first().is_some_and(|&kind| PayloadType(kind) == PayloadType::PROXY)
}
