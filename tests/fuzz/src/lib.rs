//! What decoders do with bytes that anybody may have sent: a value or an error.
//!
//! One function for each fuzz target of this folder. The suite `network` runs them too, on changed messages, with any
//! compiler.

use bytes::Bytes;
use dg_config::ClusterFile;
use dg_flux::parallel::Resume;
use dg_net::bus::Hello;
use dg_net::join::JoinToken;
use dg_net::wire::{self, Message};
use dg_plan::{Layout, known};
use dg_runtime::fleet::client::{Ask, Tell};
use dg_runtime::fleet::job::{JobBody, ModelCard, RankDone, unpack_part};
use dg_runtime::fleet::protocol::{AgentAsk, AgentFacts, Down, LogLines, NodeSpec, RankIn, RankOut, Up};
use std::path::Path;

/// A message that is one can be written again.
fn decoded<M: Message>(bytes: &[u8]) -> Option<M> {
    let message = wire::decode::<M>(bytes).ok()?;
    // Of a value there may be several forms, of which the one that is written is not the longest.
    let again = wire::encode(&message).expect("it was no longer than a message may be");
    assert!(again.len() <= bytes.len() && wire::decode::<M>(&again).is_ok());
    Some(message)
}

/// Every kind of message that head, agents and ranks exchange.
pub fn wire(bytes: &[u8]) {
    decoded::<Hello>(bytes);
    decoded::<AgentFacts>(bytes);
    decoded::<NodeSpec>(bytes);
    decoded::<Down>(bytes);
    decoded::<AgentAsk>(bytes);
    decoded::<LogLines>(bytes);
    decoded::<RankIn>(bytes);
    decoded::<RankOut>(bytes);
    decoded::<Tell>(bytes);
}

/// What a node says to the head, and the card of a model within it.
pub fn up(bytes: &[u8]) {
    if let Some(Up::Model(_, Ok(card))) = decoded::<Up>(bytes) {
        let _ = serde_json::from_str::<ModelCard>(&card);
    }
}

/// What a client asks the head.
pub fn ask(bytes: &[u8]) {
    decoded::<Ask>(bytes);
}

/// Bodies: a job and whether it can be made, what a rank made, its part of the latents.
pub fn bulk_job(bytes: &[u8]) {
    let shape = known::flux_dev();
    if let Ok(job) = serde_json::from_slice::<JobBody>(bytes)
        && job.fault().is_none()
    {
        // As the head does, which has few ranks.
        let layout = Layout { dp: 1, ..job.ask.layout };
        if layout.ranks() <= RANKS {
            let _ = (job.plan(&shape, layout), job.work(&shape));
        }
    }
    let body = Bytes::copy_from_slice(bytes);
    let _ = RankDone::unpack(&body);
    if let Some(part) = unpack_part(&body) {
        let _ = Resume::from_parts(&[part.clone(), part], [2, 16, 4]);
    }
}

/// A join token as somebody types it.
pub fn token(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(token) = text.parse::<JoinToken>() {
        assert_eq!(token.to_string().parse::<JoinToken>().as_ref(), Ok(&token));
    }
}

/// The file of a cluster.
pub fn cluster_toml(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(file) = ClusterFile::read(Path::new("x.toml"), text) {
        let _ = file.check_layout(text);
    }
}

const RANKS: u64 = 64;
