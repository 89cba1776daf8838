//! A program of one's own with the engine inside: pictures from four ranks, asked for through an actor.
//!
//! ```text
//! cargo run --release -p dg-runtime --example embedded
//! ```

use dg_core::{GenerateRequest, ImageSize, Scale, Seed, StepEvent, Steps};
use dg_runtime::flux::ModelSource;
use dg_runtime::{Cluster, Picture};
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use std::error::Error;
use std::time::Duration;

/// An actor that owns a cluster and draws what it is asked for.
struct Painter;

enum Order {
    /// A picture after this text.
    Draw(String, RpcReplyPort<Result<Picture, String>>),
}

// A cluster speaks over its actors: whatever a program sends between its own stays inside of it.
impl ractor::Message for Order {}

impl Actor for Painter {
    type Msg = Order;
    type State = Cluster;
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<Order>, (): ()) -> Result<Cluster, ActorProcessingErr> {
        let files = dg_demo::files().iter().map(|file| (file.path, file.bytes)).collect();
        // four ranks in this process, in the best layout that keeps the picture
        Ok(Cluster::local(ModelSource::Embedded(files), "demo", 4).await?)
    }

    async fn handle(
        &self,
        _: ActorRef<Order>,
        Order::Draw(prompt, reply): Order,
        cluster: &mut Cluster,
    ) -> Result<(), ActorProcessingErr> {
        let mut job = cluster.submit(vec![request(&prompt)?]);
        while let Some(event) = job.next_event().await {
            if let StepEvent::Step { step, steps, seconds, .. } = event {
                println!("{prompt}: step {step} of {steps}, {:.0} ms", 1e3 * seconds);
            }
        }
        let drawn = job.await.map(|mut pictures| pictures.remove(0)).map_err(|e| e.to_string());
        for rank in cluster.status() {
            println!(
                "rank {} {:?}: {:?}, {} bytes of weights",
                rank.rank, rank.coords, rank.state, rank.mapped_bytes
            );
        }
        // whoever asked may have given up
        let _ = reply.send(drawn);
        Ok(())
    }
}

/// What the demo model is good at.
fn request(prompt: &str) -> Result<GenerateRequest, Box<dyn Error + Send + Sync>> {
    let (size, _) = ImageSize::fit(128, 128)?;
    let mut request = GenerateRequest::new(prompt, size, Seed(7));
    request.num_inference_steps = Steps::try_from(12)?;
    request.true_cfg_scale = Scale::try_from(3.0)?;
    request.negative_prompt = Some(String::new());
    Ok(request)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (painter, ended) = Actor::spawn(None, Painter, ()).await?;
    let patience = Some(Duration::from_secs(120));
    let reply = painter.call(|reply| Order::Draw("red apple".into(), reply), patience).await?;
    let picture = reply.success_or("the painter is gone")??;
    let path = std::env::temp_dir().join("embedded.png");
    image::save_buffer(
        &path,
        &picture.rgb,
        picture.size.width(),
        picture.size.height(),
        image::ExtendedColorType::Rgb8,
    )?;
    println!("{}", path.display());
    painter.stop(None);
    ended.await?;
    Ok(())
}
