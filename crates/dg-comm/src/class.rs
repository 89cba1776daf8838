//! What a message is for: the key of every counter and of the report.

use std::fmt;

/// Message class. Bytes are counted, predicted and reported by class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// Noise predictions between the branches of classifier-free guidance.
    CfgNoise,
    /// Barriers and decisions that ranks take together (cancel, cache hit). No plan predicts it.
    Control,
    /// Text embeddings, from the rank that encoded them.
    Embeds,
    /// Results collected on one or all ranks.
    Gather,
    /// Hidden states of image tokens, from one pipeline stage to the next.
    PipeHidden,
    /// Latents, from the last pipeline stage to the first.
    PipeLatents,
    /// Hidden states of text tokens, from one pipeline stage to the next.
    PipeText,
    /// Keys and values going round a ring.
    RingKv,
    /// Attention outputs on their way back from heads to tokens.
    UlyssesOut,
    /// Queries, keys and values on their way from tokens to heads.
    UlyssesQkv,
}

impl Class {
    /// Every class.
    pub const ALL: [Self; 10] = [
        Self::CfgNoise,
        Self::Control,
        Self::Embeds,
        Self::Gather,
        Self::PipeHidden,
        Self::PipeLatents,
        Self::PipeText,
        Self::RingKv,
        Self::UlyssesOut,
        Self::UlyssesQkv,
    ];

    /// Name in reports, for example `ulysses_qkv`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::CfgNoise => "cfg_noise",
            Self::Control => "control",
            Self::Embeds => "embeds",
            Self::Gather => "gather",
            Self::PipeHidden => "pipe_hidden",
            Self::PipeLatents => "pipe_latents",
            Self::PipeText => "pipe_text",
            Self::RingKv => "ring_kv",
            Self::UlyssesOut => "ulysses_out",
            Self::UlyssesQkv => "ulysses_qkv",
        }
    }

    /// The class of that [name](Self::name).
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.name() == name)
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
