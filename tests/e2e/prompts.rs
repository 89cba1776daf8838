//! Prompts files.

use super::place::{Place, SMALL, expect_exit, json_lines};
use std::io::Write;
use std::process::Stdio;

#[test]
fn every_kind_of_file_gives_the_same_pictures() {
    let place = Place::new();
    place.write("p.txt", "\u{feff}red apple\r\n\r\nhouse\r\n");
    place.write("p.json", "[\"red apple\",\n {\"prompt\": \"house\"}]");
    place.write("p.jsonl", "{\"prompt\": \"red apple\"}\n\"house\"\n");
    place.write("p.csv", "id,prompt\n1,red apple\n2,house\n");
    let mut trees = Vec::new();
    for kind in ["txt", "json", "jsonl", "csv"] {
        let file = format!("p.{kind}");
        let output =
            place.small(&["--prompts_file", &file, "--seed", "1", "--output_dir", kind]).expect_success();
        assert_eq!(output.stdout, format!("{kind}/000000.png\n{kind}/000001.png\n"));
        trees.push(place.tree(kind));
    }
    for (name, input) in
        [("lines", "red apple\nhouse\n"), ("objects", "  {\"prompt\": \"red apple\"}\n\"house\"\n")]
    {
        let args = [SMALL, &["--prompts_file", "-", "--seed", "1", "--output_dir", name]].concat();
        let mut child =
            place.command(&args).stdin(Stdio::piped()).spawn().expect("the program was just built");
        child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("it reads");
        expect_exit(&dg_testkit::program::finish(child, super::place::TIMEOUT), 0, &[]);
        trees.push(place.tree(name));
    }
    assert!(trees.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn rows_have_their_own_settings_and_names() {
    let place = Place::new();
    place.write(
        "p.csv",
        "prompt,height,width,seed,num_inference_steps,negative_prompt,true_cfg_scale,guidance_scale,file\n\
         a,32,48,9,1,b,2,1,first\nc,,,,,,,,second.png\n",
    );
    let args = ["--prompts_file", "p.csv", "--output_name_column", "file", "--seed", "100", "--json"];
    let lines = json_lines(&place.small(&args).expect_success());
    let of = |i: usize| ["path", "size", "seed"].map(|key| lines[i][key].to_string());
    assert_eq!(of(0), ["\"output/first.png\"", "\"48x32\"", "9"]);
    assert_eq!(of(1), ["\"output/second.png\"", "\"64x64\"", "101"]);
}

#[test]
fn no_name_leaves_the_output_folder() {
    let place = Place::new();
    for name in ["../evil", "/tmp/evil", "a/b", "a\\\\b", "..", ".hidden", "nul", "x\\u0000y", "x\\ny", ""] {
        place.write("p.jsonl", format!("{{\"prompt\":\"a\",\"name\":\"{name}\"}}\n"));
        let output = place.small(&["--prompts_file", "p.jsonl", "--output_dir", "deep/o"]);
        expect_exit(&output, 3, &["line 1: name `", "hint: "]);
    }
    assert!(!place.path("deep").exists() && !place.path("evil.png").exists());
    place.write("p.jsonl", "{\"prompt\":\"a\",\"name\":\"x\"}\n{\"prompt\":\"b\",\"name\":\"x.png\"}\n");
    expect_exit(&place.small(&["--prompts_file", "p.jsonl"]), 3, &["line 2: x.png is the file of line 1"]);
    let rows = "{\"prompt\":\"a\",\"name\":\"x\"}\n{\"prompt\":1}\n{\"prompt\":\"b\",\"name\":\"x\"}\n";
    place.write("p.jsonl", rows);
    let output = place.small(&["--prompts_file", "p.jsonl"]);
    expect_exit(&output, 3, &["2 bad rows", "line 2: ", "line 3: x.png is the file of line 1"]);
}

#[test]
fn all_bad_rows_are_reported_before_any_work() {
    let place = Place::new();
    place.write(
        "p.jsonl",
        "{\"prompt\":\"ok\"}\n{\"prompt\":1}\nnonsense\n{\"prompt\":\"a\",\"width\":0}\n{}\n",
    );
    let output = place.small(&["--prompts_file", "p.jsonl"]);
    let said = [
        "4 bad rows",
        "line 2: ",
        "line 3: not JSON",
        "line 4: width does not accept `0`",
        "line 5: no prompt",
    ];
    expect_exit(&output, 3, &said);
    assert!(!output.stderr.contains("line 1") && !place.path("output").exists());
    for (name, text, said) in [
        ("p.json", "{\"prompt\": \"a\"}", "expected an array"),
        ("p.csv", "text\na\n", "no column `prompt`"),
        ("p.txt", "\n\n", "no prompts"),
        ("p.yaml", "a\n", "unknown kind of file"),
    ] {
        place.write(name, text);
        expect_exit(&place.small(&["--prompts_file", name]), 3, &[said, "hint: "]);
    }
    place.write("p.txt", b"a\n\xff\xfe\n");
    expect_exit(&place.small(&["--prompts_file", "p.txt"]), 3, &["line 2 is not UTF-8"]);
    expect_exit(&place.small(&["--prompts_file", "none.txt"]), 3, &["none.txt", "hint: "]);
    place.write("p.txt", "x".repeat(32_001));
    expect_exit(&place.small(&["--prompts_file", "p.txt"]), 3, &["line 1: prompt does not accept"]);
}

#[test]
fn columns_that_mean_nothing_are_noticed() {
    let place = Place::new();
    place.write("p.csv", "prompt,heigth,category\na,64,b\n");
    let output = place.small(&["--prompts_file", "p.csv", "--output_name_column", "file"]);
    expect_exit(
        &output,
        0,
        &["`heigth` of the prompts file is ignored; did you mean `height`?", "column `file`"],
    );
    assert!(!output.stderr.contains("category"), "{}", output.stderr);
}

#[test]
fn a_long_prompt_is_cut_with_a_warning() {
    let place = Place::new();
    let prompt = format!("red apple {}", "and a house ".repeat(60));
    let output = place.small(&["--prompt", &prompt]);
    expect_exit(&output, 0, &["warning: CLIP reads 77 tokens; cut off: `", "warning: T5 reads 32 tokens"]);
}
