//! A plan for reading.

use super::{Planned, node, usual_step};
use crate::machine::bytes;
use dg_plan::{Candidate, Class, Part, Passes, Plan};
use std::fmt::Write as _;

/// The whole page.
pub(super) fn page(p: &Planned) -> String {
    let page = head(p) + &ranks(p) + &traffic(&p.plan) + &choice(p);
    page.trim_end().to_string()
}

fn head(p: &Planned) -> String {
    let (plan, w) = (&p.plan, &p.plan.work);
    let time = plan.predict(&p.machine);
    let passes = match plan.passes {
        Passes::Whole => "the whole sequence at once".to_string(),
        Passes::Streams => "exact pipeline: pictures and branches follow one another".into(),
        Passes::Patches => {
            format!("{} patches, warm-up {}", plan.patches.runs().len(), plan.warmup)
        }
    };
    let exact = if plan.is_exact() { "the serial picture" } else { "drifts from the serial picture" };
    let pictures = if w.images == 1 { "1 picture".into() } else { format!("{} pictures", w.images) };
    format!(
        "model      {}, {}\n\
         work       {pictures} of {}, {} + {} tokens, {} steps{}\n\
         ranks      {}: {}\n\
         order      rank = ulysses + {}·(ring + {}·(pp + {}·(cfg + {}·dp)))\n\
         passes     {passes}; {exact}\n\
         predicted  {:.2} s of denoising on {} with {}; a step {:.1} ms, of which {:.1} ms are not computing\n",
        p.model,
        w.dtype,
        w.size,
        plan.segments.text_tokens(),
        plan.segments.image_tokens(),
        w.steps,
        if w.true_cfg { ", true CFG" } else { "" },
        plan.ranks(),
        plan.layout,
        plan.layout.ulysses,
        plan.layout.ring,
        plan.layout.pp,
        plan.layout.cfg,
        time.run_s,
        p.machine.device.name,
        p.machine.links,
        1e3 * time.step_s,
        1e3 * time.exposed_s,
    )
}

fn ranks(p: &Planned) -> String {
    let plan = &p.plan;
    let mut out = String::from(
        "\n rank node  dp cfg  pp ring  u    text   image  heads  blocks     memory  (weights)   sent/step  also holds\n",
    );
    for rank in 0..plan.ranks().min(RANKS_SHOWN) {
        let at = plan.layout.coords(rank);
        let owner = at.sequence(&plan.layout);
        let (heads, blocks) = (plan.heads.of(at.ulysses as usize), &plan.stages.ranges()[at.pp as usize]);
        let memory = plan.memory(rank);
        let sent = plan.sent_in_step(rank, plan.batch_images(), usual_step(plan)).total();
        let _ = writeln!(
            out,
            "{rank:>5}{:>5}{:>4}{:>4}{:>4}{:>5}{:>3}{:>8}{:>8}{:>7}{:>8}{:>11}{:>11}{:>12}  {}",
            node(&p.machine, rank),
            at.dp,
            at.cfg,
            at.pp,
            at.ring,
            at.ulysses,
            plan.segments.text_of(owner),
            plan.segments.image_of(owner),
            format!("{}-{}", heads.start, heads.end.saturating_sub(1)),
            format!("{}-{}", blocks.start, blocks.end - 1),
            bytes(memory.total()),
            bytes(memory.transformer + memory.encoders + memory.decoder),
            bytes(sent),
            others(plan, rank)
        );
    }
    if plan.ranks() > RANKS_SHOWN {
        let _ = writeln!(out, "  … {} more; -o json has them all", plan.ranks() - RANKS_SHOWN);
    }
    out
}

fn others(plan: &Plan, rank: u32) -> String {
    let names = plan.role(rank).into_iter().filter_map(|part| match part {
        Part::XEmbedder => Some("embedders"),
        Part::NormOut => Some("end"),
        Part::Clip => Some("CLIP"),
        Part::T5 => Some("T5"),
        Part::VaeDecoder => Some("VAE"),
        _ => None,
    });
    names.collect::<Vec<_>>().join(" ")
}

/// Bytes by class: of the rank that sends most, and of all.
fn traffic(plan: &Plan) -> String {
    let (images, step) = (plan.batch_images(), usual_step(plan));
    let mut rows: Vec<(Class, u64, u64, u64)> = Vec::new();
    let sent: Vec<_> = (0..plan.ranks())
        .map(|rank| {
            let mut ends = plan.sent_before(rank, images);
            ends.add(&plan.sent_after(rank, images), 1);
            (plan.sent_in_step(rank, images, step), ends)
        })
        .collect();
    for class in Class::ALL {
        let is_end = matches!(class, Class::Embeds | Class::Gather);
        let of = sent.iter().map(|(in_step, ends)| if is_end { ends } else { in_step });
        let most = of.clone().map(|t| t.bytes(class)).max().unwrap_or(0);
        let messages = of.clone().map(|t| t.messages(class)).max().unwrap_or(0);
        rows.push((class, most, messages, of.map(|t| t.bytes(class)).sum()));
    }
    rows.retain(|row| row.1 > 0);
    if rows.is_empty() {
        return String::new();
    }
    let mut out = String::from("\nsent per step       most by a rank  in messages    by all ranks\n");
    for (class, most, messages, all) in rows {
        let once = if matches!(class, Class::Embeds | Class::Gather) { "  once per batch" } else { "" };
        let name = class.name();
        let _ = writeln!(out, "{name:<18}{:>16}{messages:>13}{:>16}{once}", bytes(most), bytes(all));
    }
    out
}

fn choice(p: &Planned) -> String {
    let Some(search) = &p.search else { return String::new() };
    let mut out = String::from("\n    run s  step ms  not computing   per rank  layout\n");
    let shown = search.candidates.iter().enumerate();
    for (i, c) in shown.filter(|(i, _)| *i < LAYOUTS_SHOWN || search.chosen == Some(*i)) {
        let mark = if search.chosen == Some(i) { ">" } else { " " };
        let _ = writeln!(
            out,
            "{mark}{:>8.2}{:>9.1}{:>15.1}{:>11}  {}{}",
            c.time.run_s,
            1e3 * c.time.step_s,
            1e3 * c.time.exposed_s,
            bytes(c.memory),
            c.layout,
            remarks(c)
        );
    }
    let _ = writeln!(out, "chosen     {}", search.reason);
    if let Some(scaling) = p.scaling.as_ref().filter(|s| s.points.len() > 1) {
        let points: Vec<String> =
            scaling.points.iter().map(|s| format!("{} ranks {:.2} s", s.ranks, s.run_s)).collect();
        let _ = writeln!(out, "more ranks {}", points.join(", "));
        if let Some(ranks) = scaling.stops_paying {
            let pays = dg_plan::search::PAYS;
            let _ = writeln!(
                out,
                "           beyond {ranks} ranks, twice as many are less than {pays} times as fast"
            );
        }
    }
    out
}

fn remarks(c: &Candidate) -> String {
    let exact = if c.is_exact { "" } else { " (changes the picture)" };
    let fits = if c.fits { "" } else { " (does not fit)" };
    format!("{exact}{fits}")
}

const RANKS_SHOWN: u32 = 32;
const LAYOUTS_SHOWN: usize = 8;
