//! A client with a TLS before 1.3; the tests of running clusters use it too.
//!
//! rustls cannot be made to speak it over QUIC, so the client's first message is changed on its way out: it offers
//! TLS 1.2 where it offered 1.3, as an old implementation would.

use quinn::crypto::rustls::QuicClientConfig;
use quinn::crypto::{ClientConfig, ExportKeyingMaterialError, HeaderKey, KeyPair, Keys, PacketKey, Session};
use quinn_proto::transport_parameters::TransportParameters;
use quinn_proto::{ConnectError, ConnectionId, Side, TransportError};
use std::any::Any;
use std::sync::Arc;

/// The configuration of such a client.
pub(crate) struct OldTls(pub(crate) Arc<QuicClientConfig>);

impl ClientConfig for OldTls {
    fn start_session(
        self: Arc<Self>,
        version: u32,
        server: &str,
        params: &TransportParameters,
    ) -> Result<Box<dyn Session>, ConnectError> {
        Ok(Box::new(OldSession(self.0.clone().start_session(version, server, params)?)))
    }
}

struct OldSession(Box<dyn Session>);

impl Session for OldSession {
    fn write_handshake(&mut self, bytes: &mut Vec<u8>) -> Option<Keys> {
        let start = bytes.len();
        let keys = self.0.write_handshake(bytes);
        // The extension `supported_versions` with TLS 1.3 only.
        let offer = [0x00, 0x2b, 0x00, 0x03, 0x02, 0x03, 0x04];
        let written = &mut bytes[start..];
        if let Some(at) = written.windows(offer.len()).position(|window| window == offer) {
            written[at + 6] = 0x03;
        }
        keys
    }

    fn initial_keys(&self, id: &ConnectionId, side: Side) -> Keys {
        self.0.initial_keys(id, side)
    }

    fn handshake_data(&self) -> Option<Box<dyn Any>> {
        self.0.handshake_data()
    }

    fn peer_identity(&self) -> Option<Box<dyn Any>> {
        self.0.peer_identity()
    }

    fn early_crypto(&self) -> Option<(Box<dyn HeaderKey>, Box<dyn PacketKey>)> {
        self.0.early_crypto()
    }

    fn early_data_accepted(&self) -> Option<bool> {
        self.0.early_data_accepted()
    }

    fn is_handshaking(&self) -> bool {
        self.0.is_handshaking()
    }

    fn read_handshake(&mut self, bytes: &[u8]) -> Result<bool, TransportError> {
        self.0.read_handshake(bytes)
    }

    fn transport_parameters(&self) -> Result<Option<TransportParameters>, TransportError> {
        self.0.transport_parameters()
    }

    fn next_1rtt_keys(&mut self) -> Option<KeyPair<Box<dyn PacketKey>>> {
        self.0.next_1rtt_keys()
    }

    fn is_valid_retry(&self, id: &ConnectionId, header: &[u8], payload: &[u8]) -> bool {
        self.0.is_valid_retry(id, header, payload)
    }

    fn export_keying_material(
        &self,
        output: &mut [u8],
        label: &[u8],
        context: &[u8],
    ) -> Result<(), ExportKeyingMaterialError> {
        self.0.export_keying_material(output, label, context)
    }
}
