//! Before the WebSocket: paths and requests (sections 1.1 to 1.3).

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::world::{Case, Done, Finding, Needs, World, case, ensure};
use crate::client::DeviceConfig;
use crate::wire::d2m::ServerGroup;

pub(super) const CASES: &[Case] = &[
    case!("D2M-1.1a", field_order, "The URL is read as protobuf: field order and unknown fields are free."),
    case!("D2M-1.1b", server_groups, "A server group is 1 to 32 digits and letters of any form."),
    case!("D2M-1.2a", prefixes, "The last path segment counts, whatever prefix stands before and query behind it."),
    case!("D2M-1.3a", not_get, "A request that is not GET is answered with 405."),
    case!("D2M-1.3b", no_upgrade, "A request without a WebSocket upgrade is answered with 426 or 400."),
    case!("D2M-1.3c", no_segment, "A path without a group is answered with 404 or 400."),
    case!("D2M-1.3d", long_segment, "A last segment of more than 512 characters is answered with 414."),
    case!("D2M-1.3e", not_hex, "A last segment that is no hex of a ClientUrlInfo is answered with 400."),
    case!("D2M-1.3f", bad_group_ids, "A group id that is not 32 bytes or of low order is answered with 400."),
    case!(
        "D2M-1.3g",
        bad_server_groups,
        "A server group that is empty, too long or of other characters is answered with 400."
    ),
    case!("D2M-A29a", double_slash, "A double slash in the path is tolerated and not redirected."),
    case!("D2M-A29b", uppercase, "A segment in capital hex is answered with 400."),
];

fn segment(world: &World) -> String {
    world.config(1).url_info().to_segment()
}

/// The hex of the group's id.
fn id(world: &World) -> String {
    hex::encode(world.key.device_group_id().as_bytes())
}

/// The status with which a path is answered: `path` replaces the group's own segment.
async fn status(world: &World, method: &str, path: &str, upgrade: bool) -> Result<u16, Finding> {
    let info = world.config(1).url_info();
    let own = world.target.mediator.path(&info);
    let base = own.strip_suffix(&info.to_segment()).unwrap_or("/");
    let upgrade = if upgrade {
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    } else {
        ""
    };
    let host = world.target.mediator.host();
    let request = format!("{method} {base}{path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n{upgrade}\r\n");
    let answer = async {
        let mut stream = world.target.mediator.stream(&info).await?;
        stream.write_all(request.as_bytes()).await?;
        stream.flush().await?;
        let mut line = [0; 12];
        stream.read_exact(&mut line).await?;
        let status = line.last_chunk::<3>().and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
        status.ok_or_else(|| Finding::Broken("the answer is not HTTP".to_owned()))
    };
    world.soon("an answer to the request", answer).await?
}

async fn answered(world: &World, paths: &[String], expected: u16) -> Done {
    for path in paths {
        let status = status(world, "GET", path, true).await?;
        ensure!(status == expected, "a path of {} characters is answered with {status}", path.len());
    }
    Ok(())
}

async fn welcomed(world: &World, path: &str) -> Done {
    let mut line = world.line(world.soon("a WebSocket", world.target.mediator.open_path(path)).await??);
    line.server_hello().await.map(drop)
}

async fn field_order(world: &World) -> Done {
    welcomed(world, &format!("1a0261300a20{}10077800", id(world))).await
}

async fn server_groups(world: &World) -> Done {
    for name in ["7", "160", "zZ9", "0123456789abcdefghijklmnopqrstUV"] {
        let server_group = ServerGroup::new(name).ok_or_else(|| format!("{name} is no server group"))?;
        world.open(&DeviceConfig { server_group, ..world.config(1) }).await?.server_hello().await?;
    }
    Ok(())
}

async fn prefixes(world: &World) -> Done {
    for path in [format!("05/{}", segment(world)), format!("5/m/{}?x=1", segment(world))] {
        welcomed(world, &path).await?;
    }
    Ok(())
}

async fn double_slash(world: &World) -> Done {
    welcomed(world, &format!("mediator//{}", segment(world))).await
}

async fn not_get(world: &World) -> Done {
    let status = status(world, "POST", &segment(world), true).await?;
    ensure!(status == 405, "POST is answered with {status}");
    Ok(())
}

async fn no_upgrade(world: &World) -> Done {
    let status = status(world, "GET", &segment(world), false).await?;
    ensure!([400, 426].contains(&status), "it is answered with {status}");
    Ok(())
}

async fn no_segment(world: &World) -> Done {
    let status = status(world, "GET", "", true).await?;
    ensure!([400, 404].contains(&status), "it is answered with {status}");
    Ok(())
}

async fn long_segment(world: &World) -> Done {
    answered(world, &["a".repeat(514)], 414).await
}

async fn not_hex(world: &World) -> Done {
    let whole = segment(world);
    let cut = |len| whole.chars().take(len).collect();
    answered(world, &["zz".to_owned(), cut(75), cut(70), "ff".to_owned()], 400).await
}

async fn bad_group_ids(world: &World) -> Done {
    let short: String = id(world).chars().skip(2).collect();
    let paths = [
        format!("0a1f{short}1a026130"),
        format!("0a20{}1a026130", "0".repeat(64)),
        format!("0a2001{}1a026130", "0".repeat(62)),
        "1a026130".to_owned(),
    ];
    answered(world, &paths, 400).await
}

async fn bad_server_groups(world: &World) -> Done {
    let paths = ["", "1a00", "1a02612e", "1a03c3a461"].map(|group| format!("0a20{}{group}", id(world)));
    answered(world, &paths, 400).await?;
    answered(world, &[format!("0a20{}1a21{}", id(world), "61".repeat(33))], 400).await
}

async fn uppercase(world: &World) -> Done {
    answered(world, &[segment(world).to_uppercase()], 400).await
}
