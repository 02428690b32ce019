//! Keyed BLAKE2b, and the keys that are derived with it.

use blake2::Blake2bMac;
use blake2::digest::consts::U32;
use blake2::digest::{FixedOutput as _, Update as _};

use super::boxes::{self, LowOrder, Public};
use super::{Secret, equal};

const D2M_PERSONAL: &[u8] = b"3ma-mdev";
const CSP_PERSONAL: &[u8] = b"3ma-csp";

/// `BLAKE2b(key, salt, personal, input)` with 32 bytes of output. Salt and personal are padded with zeros to 16 bytes.
///
/// # Panics
/// When the key is longer than 64 bytes, or salt or personal longer than 16: these are constants of the protocol.
#[must_use]
pub fn blake2b(key: &[u8], salt: &[u8], personal: &[u8], input: &[u8]) -> Secret<32> {
    #[expect(clippy::expect_used, reason = "lengths are constants of the protocol, never taken from a peer")]
    let mut mac =
        Blake2bMac::<U32>::new_with_salt_and_personal(key, salt, personal).expect("key, salt and personal fit BLAKE2b");
    mac.update(input);
    Secret::new(mac.finalize_fixed().into())
}

/// The five keys of a device group, all derived from its device group key (DGK). Only devices hold these; the mediator
/// knows nothing but the public half of the path key, the device group id.
#[derive(Debug, Clone)]
pub struct DeviceGroupKeys {
    /// DGPK, the X25519 secret that proves membership. Its public half is the device group id.
    pub path: Secret<32>,
    /// DGRK, encrypts reflected envelopes.
    pub reflect: Secret<32>,
    /// DGDIK, encrypts device info.
    pub device_info: Secret<32>,
    /// DGSDDK, encrypts the shared device data.
    pub shared_device_data: Secret<32>,
    /// DGTSK, encrypts transaction scopes.
    pub transaction_scope: Secret<32>,
}

impl DeviceGroupKeys {
    /// Derives all keys from the device group key.
    #[must_use]
    pub fn derive(dgk: &Secret<32>) -> Self {
        let key = |salt: &[u8]| blake2b(dgk.expose(), salt, D2M_PERSONAL, b"");
        Self {
            path: key(b"p"),
            reflect: key(b"r"),
            device_info: key(b"di"),
            shared_device_data: key(b"sdd"),
            transaction_scope: key(b"ts"),
        }
    }

    /// The device group id: the public half of the path key.
    #[must_use]
    pub fn device_group_id(&self) -> Public {
        boxes::public(&self.path)
    }
}

/// The CSP client's proof of its permanent key: computed by the client, recomputed and compared by the server.
///
/// `permanent` is what the two permanent keys agree on, `ephemeral` what the client's permanent key and the server's
/// ephemeral key agree on.
#[must_use]
pub fn csp_vouch(
    permanent: &Secret<32>,
    ephemeral: &Secret<32>,
    server_cookie: &[u8; 16],
    client_ephemeral: &Public,
) -> Secret<32> {
    let both = [&permanent.expose()[..], ephemeral.expose()].concat();
    let key = blake2b(&both, b"v2", CSP_PERSONAL, b"");
    blake2b(key.expose(), b"", b"", &[&server_cookie[..], client_ephemeral].concat())
}

/// Checks a device's answer to the challenge: the box must open under the key shared with the device group id, and hold
/// the challenge.
///
/// # Errors
/// [`LowOrder`] when the device group id agrees with nothing.
pub fn challenge_answered(
    esk: &Secret<32>,
    device_group_id: &Public,
    challenge: &[u8; 32],
    response: &[u8; 72],
) -> Result<bool, LowOrder> {
    let key = boxes::beforenm(esk, device_group_id)?;
    Ok(boxes::open_with_leading_nonce(&key, response).is_ok_and(|plain| equal(&plain, challenge)))
}

/// A device's answer to the mediator's challenge: `nonce ‖ box`, 72 bytes.
///
/// # Errors
/// [`LowOrder`] when the mediator's ephemeral key agrees with nothing.
pub fn answer_challenge(
    path: &Secret<32>,
    esk_public: &Public,
    challenge: &[u8; 32],
    nonce: &boxes::Nonce,
) -> Result<Vec<u8>, LowOrder> {
    let key = boxes::beforenm(path, esk_public)?;
    Ok([&nonce[..], &boxes::seal(&key, nonce, challenge)].concat())
}
