//! Token ids of every reference string.

use dg_flux::ModelSource;
use dg_flux::tokenizer::PromptTokenizer;
use serde_json::Value;

fn ids(v: &Value) -> Vec<u32> {
    v.as_array().expect("ids").iter().map(|x| x.as_u64().expect("an id") as u32).collect()
}

fn check(name: &str, tokenizer: &PromptTokenizer, key: &str, length: usize, pad: u32) {
    let golden = dg_testkit::golden_json("tok_golden.json");
    let strings = golden["strings"].as_array().expect("strings");
    assert!(strings.len() >= 65);
    for s in strings {
        let text = s["text"].as_str().expect("text");
        let mut expected = ids(&s[format!("{key}_ids")]);
        expected.resize(length, pad);
        let ours = tokenizer.encode(text, length).expect("ids");
        assert_eq!(ours.ids, expected, "{name}: {text:?}");
        let cut = s[format!("{key}_untruncated_length")].as_u64() > s[format!("{key}_length")].as_u64();
        assert_eq!(ours.cut.is_some(), cut, "{name}: {text:?} says what was cut: {:?}", ours.cut);
    }
}

#[test]
fn clip_from_vocabulary_and_merges() {
    let source = ModelSource::Folder(dg_testkit::model_dir("tiny-dev"));
    check("CLIP", &PromptTokenizer::clip(&source).expect("a tokenizer"), "clip", 77, 49407);
}

#[test]
fn t5_from_tokenizer_json() {
    let source = ModelSource::Folder(dg_testkit::model_dir("tiny-dev"));
    check("T5", &PromptTokenizer::t5(&source).expect("a tokenizer"), "t5", 512, 0);
}

#[test]
fn what_was_cut_is_the_end_of_the_prompt() {
    let source = ModelSource::Folder(dg_testkit::model_dir("tiny-dev"));
    let clip = PromptTokenizer::clip(&source).expect("a tokenizer");
    let prompt = format!("{}and a Zebra", "cat ".repeat(75));
    assert_eq!(clip.encode(&prompt, 77).expect("ids").cut.as_deref(), Some("and a Zebra"));
    assert_eq!(clip.encode("cat", 77).expect("ids").cut, None);
}

/// The demo model has a `tokenizer.json` and the two files it could be built from.
#[test]
fn clip_is_the_same_from_either_form() {
    let files = |keep: &dyn Fn(&str) -> bool| {
        let all = dg_demo::files().iter().map(|f| (f.path, f.bytes));
        ModelSource::Embedded(all.filter(|(path, _)| keep(path)).collect())
    };
    let ready = PromptTokenizer::clip(&files(&|_| true)).expect("a tokenizer");
    let built = PromptTokenizer::clip(&files(&|p| p != "tokenizer/tokenizer.json")).expect("a tokenizer");
    for text in
        ["", "red apple", "Smiling FACE with sunglasses!!", "naïve café 12,5 %", "don't <|endoftext|> x"]
    {
        assert_eq!(ready.encode(text, 77).expect("ids"), built.encode(text, 77).expect("ids"), "{text:?}");
    }
}

#[test]
fn sentencepiece_alone_is_refused_with_the_way_out() {
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(dir.path().join("tokenizer_2")).expect("a folder");
    std::fs::write(dir.path().join("tokenizer_2/spiece.model"), b"x").expect("a file");
    let error = PromptTokenizer::t5(&ModelSource::Folder(dir.path().into())).err().expect("refused");
    assert!(error.to_string().contains("spiece.model"), "{error}");
    assert!(error.hint().expect("a hint").contains("save_pretrained"));
}
