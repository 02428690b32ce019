//! The WebSocket path: any prefix, then a hex-encoded `ClientUrlInfo` as last segment (spec 1.1, 1.2).

use prost::Message as _;

use super::id::DeviceGroupId;
use super::pb;
use crate::crypto::boxes;

/// Longest last segment that is looked at, in characters.
pub const SEGMENT_MAX: usize = 512;
/// Longest server group name, in characters.
pub const SERVER_GROUP_MAX: usize = 32;

/// What a device's URL says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientUrlInfo {
    /// The group the device claims to belong to; proved by the handshake.
    pub device_group_id: DeviceGroupId,
    /// Names the chat server.
    pub server_group: ServerGroup,
}

/// The name of a chat server: 1 to 32 characters of `0-9a-zA-Z`. Real clients disagree about its width and base, so it is
/// never read as a number.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServerGroup(String);

impl ServerGroup {
    /// Checks a name.
    #[must_use]
    pub fn new(name: &str) -> Option<Self> {
        let fits = (1..=SERVER_GROUP_MAX).contains(&name.len());
        (fits && name.bytes().all(|b| b.is_ascii_alphanumeric())).then(|| Self(name.to_owned()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Why a path names no device group (spec 1.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadUrl {
    /// There is no segment at all.
    #[error("the path has no segment")]
    NoSegment,
    /// Longer than [`SEGMENT_MAX`].
    #[error("the last path segment is longer than {SEGMENT_MAX} characters")]
    TooLong,
    /// Not lowercase hex.
    #[error("the last path segment is not lowercase hex")]
    NotHex,
    /// Hex of something else.
    #[error("the last path segment is not a ClientUrlInfo")]
    NotClientUrlInfo,
    /// Wrong length, or a point with which no secret can be shared.
    #[error("the device group id is not a usable X25519 public key of 32 bytes")]
    DeviceGroupId,
    /// Empty, too long, or other characters than digits and letters.
    #[error("the server group is not 1 to {SERVER_GROUP_MAX} digits and letters")]
    ServerGroup,
}

impl ClientUrlInfo {
    /// Reads the last segment of a path. Empty segments do not count (some clients build a double slash), the segments
    /// before the last are a deployment's own affair.
    ///
    /// # Errors
    /// [`BadUrl`] names what is wrong.
    pub fn from_path(path: &str) -> Result<Self, BadUrl> {
        let segment = path.rsplit('/').find(|segment| !segment.is_empty()).ok_or(BadUrl::NoSegment)?;
        if segment.len() > SEGMENT_MAX {
            return Err(BadUrl::TooLong);
        }
        if segment.bytes().any(|b| !matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(BadUrl::NotHex);
        }
        let bytes = hex::decode(segment).map_err(|_| BadUrl::NotHex)?;
        let info = pb::ClientUrlInfo::decode(&bytes[..]).map_err(|_| BadUrl::NotClientUrlInfo)?;
        let public: [u8; DeviceGroupId::LEN] =
            info.device_group_id.as_slice().try_into().map_err(|_| BadUrl::DeviceGroupId)?;
        if !boxes::is_contributory(&public) {
            return Err(BadUrl::DeviceGroupId);
        }
        let server_group = ServerGroup::new(&info.server_group).ok_or(BadUrl::ServerGroup)?;
        Ok(Self { device_group_id: DeviceGroupId::new(public), server_group })
    }

    /// The hex segment that names this group: what a device appends to its mediator's base URL.
    #[must_use]
    pub fn to_segment(&self) -> String {
        let info = pb::ClientUrlInfo {
            device_group_id: self.device_group_id.as_bytes().to_vec(),
            server_group: self.server_group.0.clone(),
        };
        hex::encode(info.encode_to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: &str = "0a202fd17ba2f9c2c31e52f0acbba8ff741ac89b3b58a8c208a25ad4a625ea1387231a026130";

    #[test]
    fn prefixes_and_double_slashes_do_not_matter() {
        let info = ClientUrlInfo::from_path(&format!("/{SEGMENT}")).unwrap();
        for path in [format!("/2f/{SEGMENT}"), format!("/mediator//{SEGMENT}"), format!("//{SEGMENT}/"), SEGMENT.into()]
        {
            assert_eq!(ClientUrlInfo::from_path(&path), Ok(info.clone()), "{path}");
        }
        assert_eq!(info.server_group.as_str(), "a0");
        assert_eq!(info.to_segment(), SEGMENT);
    }

    #[test]
    fn field_order_and_unknown_fields_are_free() {
        let public = &SEGMENT[4..68];
        // server_group first, an old numeric server_group (field 2), and a field nobody knows (15).
        let path = format!("/1a0261300a20{public}10077800");
        assert_eq!(ClientUrlInfo::from_path(&path).unwrap().to_segment(), SEGMENT);
    }

    #[test]
    fn each_bad_path_has_its_name() {
        let public = &SEGMENT[4..68];
        let cases: &[(String, BadUrl)] = &[
            (String::new(), BadUrl::NoSegment),
            ("///".into(), BadUrl::NoSegment),
            (format!("/{}", "a".repeat(513)), BadUrl::TooLong),
            (format!("/{}", SEGMENT.to_uppercase()), BadUrl::NotHex),
            ("/0a2".into(), BadUrl::NotHex),
            ("/healthz".into(), BadUrl::NotHex),
            ("/0a20ff".into(), BadUrl::NotClientUrlInfo),
            (format!("/0a1f{}1a026130", &public[2..]), BadUrl::DeviceGroupId),
            (format!("/0a20{}1a026130", "0".repeat(64)), BadUrl::DeviceGroupId),
            (format!("/0a2001{}1a026130", "0".repeat(62)), BadUrl::DeviceGroupId),
            (format!("/0a20{public}"), BadUrl::ServerGroup),
            (format!("/0a20{public}1a00"), BadUrl::ServerGroup),
            (format!("/0a20{public}1a02612e"), BadUrl::ServerGroup),
            (format!("/0a20{public}1a21{}", "61".repeat(33)), BadUrl::ServerGroup),
        ];
        for (path, expected) in cases {
            assert_eq!(ClientUrlInfo::from_path(path), Err(*expected), "{path}");
        }
    }
}
