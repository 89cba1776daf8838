//! Prompt → token ids, by the crate `tokenizers`.

use crate::{ModelError, ModelSource};
use serde::de::DeserializeOwned;
use std::panic::{AssertUnwindSafe, catch_unwind};
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::models::unigram::Unigram;
use tokenizers::{
    AddedToken, DecoderWrapper, Model, ModelWrapper, NormalizerWrapper, PostProcessorWrapper,
    PreTokenizerWrapper, Tokenizer, TokenizerImpl,
};

/// CLIP reads this many tokens, start and end included.
pub const CLIP_TOKENS: usize = 77;

const START: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";

/// Token ids of one prompt, padded to the length of the encoder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// The ids.
    pub ids: Vec<u32>,
    /// The end of the prompt that did not fit, if any.
    pub cut: Option<String>,
}

/// Either tokenizer of a FLUX model.
pub struct PromptTokenizer {
    file: &'static str,
    inner: Tokenizer,
    start: Option<u32>,
    end: u32,
    pad: u32,
    largest: u32,
}

impl PromptTokenizer {
    /// CLIP's, from `tokenizer/tokenizer.json`, or else built from `vocab.json` and `merges.txt`.
    /// Ids are start + at most 75 tokens + end, padded with end.
    pub fn clip(source: &ModelSource) -> Result<Self, ModelError> {
        let ready = "tokenizer/tokenizer.json";
        let (file, inner, largest) = if source.has(ready) {
            let inner = parse::<BPE>(ready, &source.small(ready)?)?;
            let largest = largest_id(&inner);
            (ready, inner, largest)
        } else {
            clip_from_vocabulary(source)?
        };
        let (start, end) = (special(&inner, file, START)?, special(&inner, file, END)?);
        Ok(Self { file, inner: plain(inner), start: Some(start), end, pad: end, largest })
    }

    /// T5's, from `tokenizer_2/tokenizer.json`. Ids are tokens + `</s>`, padded with `<pad>`.
    pub fn t5(source: &ModelSource) -> Result<Self, ModelError> {
        let file = "tokenizer_2/tokenizer.json";
        if !source.has(file) {
            let spiece = source.has("tokenizer_2/spiece.model");
            let reason = if spiece { "not there; `spiece.model` alone cannot be read" } else { "not there" };
            let hint = "make it with Python's transformers: \
                        T5TokenizerFast.from_pretrained(\"MODEL\", subfolder=\"tokenizer_2\")\
                        .save_pretrained(\"MODEL/tokenizer_2\")";
            return Err(ModelError::Tokenizer {
                file: file.into(),
                reason: reason.into(),
                hint: hint.into(),
            });
        }
        let inner = parse::<Unigram>(file, &source.small(file)?)?;
        let (end, pad) = (special(&inner, file, "</s>")?, special(&inner, file, "<pad>")?);
        let largest = largest_id(&inner);
        Ok(Self { file, inner: plain(inner), start: None, end, pad, largest })
    }

    /// The ids of `prompt`, exactly `length` of them.
    ///
    /// Fails when the tokenizer has no token for a part of the prompt, nor one for unknown parts.
    pub fn encode(&self, prompt: &str, length: usize) -> Result<Tokens, ModelError> {
        let encoding = fenced(|| self.inner.encode(prompt, false))
            .map_err(|e| broken(self.file, format!("it cannot encode the prompt: {e}")))?;
        let room = length.saturating_sub(1 + usize::from(self.start.is_some()));
        let words = encoding.get_ids();
        let cut = (words.len() > room).then(|| {
            let from = encoding.get_offsets().get(room).map_or(0, |o| o.0);
            prompt.get(from..).unwrap_or(prompt).trim().to_owned()
        });
        let mut ids: Vec<u32> = self.start.into_iter().chain(words.iter().take(room).copied()).collect();
        ids.push(self.end);
        ids.truncate(length);
        ids.resize(length, self.pad);
        Ok(Tokens { ids, cut })
    }

    /// The largest id that it can give.
    pub fn largest_id(&self) -> u32 {
        self.largest
    }

    /// The file that it was read from, relative to the model folder.
    pub fn file(&self) -> &'static str {
        self.file
    }
}

/// A tokenizer whose model is most likely an `M`: read straight into one, which takes a third of the
/// time that finding out the kind takes.
fn parse<M>(file: &str, bytes: &[u8]) -> Result<Tokenizer, ModelError>
where
    M: Model + DeserializeOwned + Into<ModelWrapper>,
{
    type Direct<M> =
        TokenizerImpl<M, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;
    let read = || match serde_json::from_slice::<Direct<M>>(bytes) {
        Ok(tokenizer) => Ok(tokenizer.into()),
        Err(_) => Tokenizer::from_bytes(bytes),
    };
    fenced(read).map_err(|e| broken(file, e))
}

fn largest_id(t: &Tokenizer) -> u32 {
    let added = t.get_added_vocabulary().get_vocab().values().copied();
    let own = match t.get_model() {
        // its ids are the positions in its list: no need to copy a table of strings
        ModelWrapper::Unigram(model) => model.get_vocab_size().saturating_sub(1) as u32,
        model => model.get_vocab().into_values().max().unwrap_or(0),
    };
    added.fold(own, u32::max)
}

/// Runs a call of the tokenizers crate, which panics on a damaged `precompiled_charsmap`.
fn fenced<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|e| e.to_string()),
        Err(_) => Err("its definition is damaged".into()),
    }
}

fn broken(file: &str, reason: String) -> ModelError {
    ModelError::Tokenizer { file: file.into(), reason, hint: "download the tokenizer again".into() }
}

/// Neither padding nor truncation of its own: [`PromptTokenizer::encode`] does both.
fn plain(mut t: Tokenizer) -> Tokenizer {
    t.with_padding(None);
    t.with_truncation(None).expect("removing truncation cannot fail");
    t
}

fn special(t: &Tokenizer, file: &str, token: &str) -> Result<u32, ModelError> {
    t.token_to_id(token).ok_or_else(|| broken(file, format!("it has no token `{token}`")))
}

/// What `transformers` builds from CLIP's `vocab.json` and `merges.txt`.
/// With the file to name in errors and the largest id.
fn clip_from_vocabulary(source: &ModelSource) -> Result<(&'static str, Tokenizer, u32), ModelError> {
    let (vocab_file, merges_file) = ("tokenizer/vocab.json", "tokenizer/merges.txt");
    let vocab: Vocab = source.json(vocab_file)?;
    for token in [START, END] {
        if !vocab.contains_key(token) {
            return Err(broken(vocab_file, format!("it has no token `{token}`")));
        }
    }
    let text = source.small(merges_file)?;
    let text = std::str::from_utf8(&text).map_err(|e| broken(merges_file, e.to_string()))?;
    let merges: Merges = text
        .lines()
        .filter(|l| !l.starts_with("#version") && !l.is_empty())
        .map(|l| match l.split_once(' ') {
            Some((a, b)) if !b.contains(' ') => Ok((a.into(), b.into())),
            _ => Err(broken(merges_file, format!("`{l}` is not two words"))),
        })
        .collect::<Result<_, _>>()?;
    // start and end are in it: nothing is added to it
    let largest = vocab.values().copied().max().unwrap_or(0);
    let bpe = BPE::builder()
        .vocab_and_merges(vocab, merges)
        .unk_token(END.into())
        .end_of_word_suffix("</w>".into());
    let tokenizer = fenced(|| {
        let mut tokenizer = Tokenizer::new(bpe.build()?);
        tokenizer.with_normalizer(Some(from_json::<NormalizerWrapper>(CLIP_NORMALIZER)?))?;
        tokenizer.with_pre_tokenizer(Some(from_json::<PreTokenizerWrapper>(CLIP_PRE_TOKENIZER)?));
        let added = |token: &str, normalized| AddedToken::from(token, true).normalized(normalized);
        tokenizer.add_tokens([added(START, true), added(END, false)])?;
        Ok(tokenizer)
    });
    Ok((vocab_file, tokenizer.map_err(|e| broken(merges_file, e))?, largest))
}

fn from_json<T: DeserializeOwned>(text: &str) -> tokenizers::Result<T> {
    Ok(serde_json::from_str(text)?)
}

const CLIP_NORMALIZER: &str = r#"{ "type": "Sequence", "normalizers": [
    { "type": "NFC" },
    { "type": "Replace", "pattern": { "Regex": "\\s+" }, "content": " " },
    { "type": "Lowercase" }
] }"#;

const CLIP_PRE_TOKENIZER: &str = r#"{ "type": "Sequence", "pretokenizers": [
    { "type": "Split", "behavior": "Removed", "invert": true, "pattern": { "Regex":
      "<\\|startoftext\\|>|<\\|endoftext\\|>|'s|'t|'re|'ve|'m|'ll|'d|[\\p{L}]+|[\\p{N}]|[^\\s\\p{L}\\p{N}]+" } },
    { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true }
] }"#;
