//! What is shipped beside the binary: that every path, port, command, metric and label named in it exists.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Parser as _;
use heliostat::cli::{Cli, ServeArgs};
use heliostat::config::Config;
use serde_json::Value;

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn read(name: &str) -> String {
    std::fs::read_to_string(file(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn yaml(name: &str) -> Value {
    serde_yaml_ng::from_str(&read(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn compose() -> Value {
    yaml("docker-compose.yml")
}

fn strings(value: &Value) -> Vec<&str> {
    value.as_array().unwrap_or(const { &Vec::new() }).iter().map(|it| it.as_str().unwrap()).collect()
}

/// What a container sees under a path: the mount's place and the file or volume behind it.
fn mounts(service: &Value) -> Vec<(&str, &str)> {
    strings(&service["volumes"])
        .into_iter()
        .map(|mount| {
            let mut parts = mount.split(':');
            let (outside, inside) = (parts.next().unwrap(), parts.next().unwrap());
            assert!(matches!(parts.next(), None | Some("ro")), "{mount}");
            (inside, outside)
        })
        .collect()
}

/// The file in the repository that a container sees at `inside`.
fn behind(service: &Value, inside: &str) -> PathBuf {
    let mounts = mounts(service);
    let mount = mounts.iter().find(|(at, _)| Path::new(inside).starts_with(at));
    let (at, outside) = mount.unwrap_or_else(|| panic!("nothing is mounted at {inside}"));
    file(outside).join(Path::new(inside).strip_prefix(at).unwrap()).components().collect()
}

/// What the container of the mediator is configured to.
fn configured(service: &Value) -> Config {
    let words = strings(&service["command"]);
    let at = words.iter().position(|&word| word == "--config").unwrap();
    let text = std::fs::read_to_string(behind(service, words[at + 1])).unwrap();
    let token = token_file(service);
    assert!(text.contains(&format!("file:{token}\"")));
    let text = text.replace(token, behind(service, token).to_str().unwrap());
    Config::parse("compose.toml", &text).unwrap()
}

/// What `heliostat admin` is told in the container, and the server is, too.
fn token_file(service: &Value) -> &str {
    service["environment"]["HELIOSTAT_ADMIN_TOKEN_FILE"].as_str().unwrap()
}

#[test]
fn every_path_command_and_port_of_the_compose_file_exists() {
    let compose = compose();
    let services = compose["services"].as_object().unwrap();
    let volumes: BTreeSet<&String> = compose["volumes"].as_object().unwrap().keys().collect();
    let mut published = BTreeSet::new();
    for (name, service) in services {
        assert!(service.get("build").is_none() || file("Dockerfile").is_file());
        let image = service["image"].as_str().unwrap();
        assert!(service.get("build").is_some() || image.contains(':'), "{name}: {image} is not pinned");
        for (_, outside) in mounts(service) {
            match outside.strip_prefix("./") {
                Some(path) => assert!(file(path).exists(), "{name}: {path}"),
                None => assert!(volumes.iter().any(|volume| *volume == outside), "{name}: {outside}"),
            }
        }
        for other in strings(&service["depends_on"]) {
            assert!(services.contains_key(other), "{name}: {other}");
        }
        for port in strings(&service["ports"]) {
            let outside = port.strip_prefix("127.0.0.1:").unwrap_or_else(|| panic!("{name}: {port} is open to others"));
            assert!(published.insert(outside.split(':').next().unwrap()), "{name}: {port} is taken");
        }
    }

    let mediator = &services["heliostat"];
    Cli::try_parse_from([&["heliostat"], &*strings(&mediator["command"])].concat()).unwrap();
    let config = configured(mediator);
    let inside = |service: &Value| -> BTreeSet<u16> {
        strings(&service["ports"]).iter().map(|port| port.rsplit(':').next().unwrap().parse().unwrap()).collect()
    };
    let listens = [config.listen.address, config.chat.csp.listen, config.admin.listen];
    assert_eq!(inside(mediator), listens.iter().map(std::net::SocketAddr::port).collect());
    assert!(listens.iter().all(|address| address.ip().is_unspecified()), "reachable from outside of the container");
    for path in [config.listen.cert.unwrap(), config.listen.key.unwrap()] {
        assert!(behind(mediator, path.to_str().unwrap()).is_file(), "{}", path.display());
    }
    assert!(mounts(mediator).iter().any(|(inside, _)| Path::new(inside) == config.data_dir), "the data is on a volume");
}

/// Killed when it is dropped.
struct Killed(std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn the_binary_starts_with_the_configuration_of_the_compose_file() {
    let compose = compose();
    let mediator = &compose["services"]["heliostat"];
    let dir = tempfile::tempdir().unwrap();
    let mut text = read("deploy/compose.toml");
    for inside in ["/certs/throwaway-test-only-cert.pem", "/certs/throwaway-test-only-key.pem", token_file(mediator)] {
        assert!(text.contains(inside), "{inside}");
        text = text.replace(inside, behind(mediator, inside).to_str().unwrap());
    }
    for (listens, any_port) in
        [("0.0.0.0:8443", "0.0.0.0:0"), ("0.0.0.0:9090", "0.0.0.0:0"), ("0.0.0.0:5222", "0.0.0.0:0")]
    {
        assert!(text.contains(listens), "{listens}");
        text = text.replace(listens, any_port);
    }
    text = text.replace("\"/data\"", &format!("{:?}", dir.path().join("data")));
    let config = dir.path().join("compose.toml");
    std::fs::write(&config, text).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_heliostat"));
    command.args(["serve", "--config"]).arg(&config).env("HELIOSTAT_LOG", "error");
    let mut server = Killed(command.stdout(std::process::Stdio::piped()).spawn().unwrap());
    let said = std::io::BufReader::new(server.0.stdout.take().unwrap());
    let mut said = std::io::BufRead::lines(said).map_while(Result::ok);
    // It says so once all doors are open.
    let admin = said.find(|line| line.contains("http://"));
    assert!(admin.is_some(), "the server ended: {}", server.0.wait().unwrap());
}

#[test]
fn prometheus_and_grafana_find_each_other_the_mediator_and_their_files() {
    let compose = compose();
    let services = &compose["services"];
    let [mediator, prometheus, grafana] = ["heliostat", "prometheus", "grafana"].map(|name| &services[name]);

    let started_with = strings(&prometheus["command"]);
    let config = started_with.iter().find_map(|word| word.strip_prefix("--config.file=")).unwrap();
    assert_eq!(behind(prometheus, config), file("deploy/prometheus.yml"));
    let scraped = yaml("deploy/prometheus.yml");
    for rules in strings(&scraped["rule_files"]) {
        let path = Path::new(config).with_file_name(rules);
        assert!(behind(prometheus, path.to_str().unwrap()).is_file(), "{rules}");
    }
    let job = &scraped["scrape_configs"][0];
    let token = Path::new(config).with_file_name(job["authorization"]["credentials_file"].as_str().unwrap());
    assert_eq!(behind(prometheus, token.to_str().unwrap()), behind(mediator, token_file(mediator)));
    let admin = configured(mediator).admin.listen.port();
    assert_eq!(strings(&job["static_configs"][0]["targets"]), [format!("heliostat:{admin}")]);

    let source = &yaml("deploy/grafana/datasources.yml")["datasources"][0];
    assert_eq!(source["url"], "http://prometheus:9090");
    let boards = yaml("deploy/grafana/dashboards.yml")["providers"][0]["options"]["path"].as_str().unwrap().to_owned();
    let board = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"].as_str().unwrap();
    assert!(Path::new(board).starts_with(&boards));
    let board: Value = serde_json::from_str(&std::fs::read_to_string(behind(grafana, board)).unwrap()).unwrap();
    for provisioned in ["datasources", "dashboards"] {
        let path = format!("/etc/grafana/provisioning/{provisioned}/heliostat.yml");
        assert_eq!(behind(grafana, &path), file(&format!("deploy/grafana/{provisioned}.yml")));
    }
    let mut asked = 0;
    for panel in board["panels"].as_array().unwrap().iter().filter(|panel| panel["type"] != "row") {
        for target in panel["targets"].as_array().unwrap() {
            assert_eq!(target["datasource"]["uid"], source["uid"], "{}", panel["title"]);
            asked += 1;
        }
    }
    assert!(asked > 20, "the board was read: {asked}");
}

const CLUSTER: &str = "deploy/cluster/docker-compose.yml";

/// The compose file of the cluster, with what it says by `<<` written out.
fn cluster() -> Value {
    let mut text: serde_yaml_ng::Value = serde_yaml_ng::from_str(&read(CLUSTER)).unwrap();
    text.apply_merge().unwrap();
    serde_json::to_value(text).unwrap()
}

/// Where a path of that file is in the repository.
fn beside_cluster(path: &str) -> PathBuf {
    file(CLUSTER).parent().unwrap().join(path).canonicalize().unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Whether the binary understands such words.
fn understood(words: &[&str]) {
    Cli::try_parse_from([&["heliostat"], words].concat()).unwrap_or_else(|error| panic!("{words:?}: {error}"));
}

/// What stands behind an option, each time.
fn options<'a>(words: &[&'a str], option: &str) -> Vec<&'a str> {
    words.windows(2).filter(|pair| pair[0] == option).map(|pair| pair[1]).collect()
}

/// The words that follow `heliostat` in the comment that says what made a file.
fn made_by(text: &str) -> Vec<&str> {
    let command = text.split("# Made by\n").nth(1).unwrap().split("\n#\n").next().unwrap();
    command.split(['#', '\\', '\n', ' ']).filter(|word| !word.is_empty()).skip(1).collect()
}

#[test]
fn every_path_command_and_port_of_the_cluster_exists() {
    let cluster = cluster();
    let services = cluster["services"].as_object().unwrap();
    let volumes: BTreeSet<&String> = cluster["volumes"].as_object().unwrap().keys().collect();
    let (mut published, mut addresses) = (BTreeSet::new(), BTreeSet::new());
    for (name, service) in services {
        match service["build"].as_str() {
            Some(context) => assert!(beside_cluster(context).join("Dockerfile").is_file()),
            None => assert!(service["image"].as_str().unwrap().contains(':'), "{name} is not pinned"),
        }
        for (_, outside) in mounts(service) {
            if outside.starts_with('.') {
                beside_cluster(outside);
            } else {
                assert!(volumes.iter().any(|volume| *volume == outside), "{name}: {outside}");
            }
        }
        let depends = &service["depends_on"];
        let named = depends.as_object().map_or_else(Vec::new, |map| map.keys().map(String::as_str).collect());
        for other in strings(depends).into_iter().chain(named) {
            assert!(services.contains_key(other), "{name}: {other}");
        }
        for port in strings(&service["ports"]) {
            let outside = port.strip_prefix("127.0.0.1:").unwrap_or_else(|| panic!("{name}: {port} is open to others"));
            assert!(published.insert(outside.split(':').next().unwrap().to_owned()), "{name}: {port} is taken");
        }
        if let Some(address) = service["networks"]["cluster"]["ipv4_address"].as_str() {
            assert!(addresses.insert(address), "{name}: {address} is taken");
            let subnet = cluster["networks"]["cluster"]["ipam"]["config"][0]["subnet"].as_str().unwrap();
            assert!(subnet.parse::<ipnet::IpNet>().unwrap().contains(&address.parse::<std::net::IpAddr>().unwrap()));
        }
    }
    assert_eq!(published.len(), 4, "an admin door each, and the one for devices");
}

#[test]
fn the_nodes_of_the_cluster_fit_each_other_the_balancer_and_the_database() {
    let cluster = cluster();
    let services = &cluster["services"];
    let address = |name: &str| services[name]["networks"]["cluster"]["ipv4_address"].as_str().unwrap();
    let names = ["node-1", "node-2", "node-3"];
    let haproxy = read("deploy/cluster/haproxy.cfg");
    let plan = made_by(&haproxy);
    let certificates = strings(&services["certificates"]["command"]);
    understood(&certificates);
    let out = options(&certificates, "--out")[0];
    // The volume's root is at another place there.
    let made_in = |inside: &Path| {
        let volume = inside.strip_prefix("/certificates").unwrap();
        assert!(Path::new("/data").join(volume).starts_with(out), "{}", inside.display());
    };
    let dir = tempfile::tempdir().unwrap();
    let token = "/etc/throwaway-test-only-admin-token";
    let text = read("deploy/cluster/heliostat.toml");
    assert!(text.contains(&format!("file:{token}\"")));
    let text = text.replace(token, file("deploy/throwaway-test-only-admin-token").to_str().unwrap());
    let config = dir.path().join("heliostat.toml");
    std::fs::write(&config, text).unwrap();
    let mut chat = Vec::new();
    for name in names {
        let service = &services[name];
        understood(&strings(&service["command"]));
        let environment = service["environment"].as_object().unwrap();
        let environment = environment.iter().map(|(key, value)| (key.into(), value.as_str().unwrap().into()));
        let args = ServeArgs { config: Some(config.clone()), ..ServeArgs::default() };
        let config = args.config(environment).unwrap().config;
        let address_for_others = format!("{name}:{}", config.cluster.listen.port());
        assert_eq!(config.cluster.name.as_deref(), Some(name));
        assert_eq!(config.cluster.address, Some(address_for_others));
        assert!(options(&certificates, "--node").contains(&format!("{name}={name}").as_str()));
        for path in [&config.cluster.cert, &config.cluster.key, &config.cluster.authority] {
            made_in(path.as_deref().unwrap());
        }
        assert!(config.cluster.cert.unwrap().to_str().unwrap().contains(name));
        assert!(mounts(service).contains(&("/certificates", "links")) && mounts(service).contains(&("/data", name)));

        let doors = [config.listen.address, config.cluster.listen, config.admin.listen];
        assert!(doors.iter().all(|door| door.ip().is_unspecified()), "reachable from outside of the container");
        assert!(config.listen.plain && config.listen.proxy_protocol, "as the balancer speaks");
        let trusted: Vec<String> = config.listen.trusted_proxies.iter().map(ToString::to_string).collect();
        assert_eq!(trusted.len(), 1);
        assert!(trusted[0].starts_with(address("haproxy")));
        let node = format!("{name}={}:{}", address(name), config.listen.address.port());
        assert!(options(&plan, "--node").contains(&node.as_str()), "{node}: {plan:?}");
        assert_eq!(options(&plan, "--admin-port"), [config.admin.listen.port().to_string()]);
        assert!(strings(&service["ports"])[0].ends_with(&format!(":{}", config.admin.listen.port())));

        let exempt: Vec<String> = config.chat.csp.exempt.unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(exempt, names.map(address));
        chat.push(config.chat.csp.enabled);
        let target = format!("addresses = [\"{}:{}\"]", address("node-1"), config.chat.csp.listen.port());
        assert!(name != "node-1" || read("deploy/cluster/heliostat.toml").contains(&target));
    }
    assert_eq!(chat, [true, false, false], "one chat server, at the first");

    let postgres = &services["postgres"]["environment"];
    let [user, password, database] =
        ["USER", "PASSWORD", "DB"].map(|it| postgres[format!("POSTGRES_{it}")].as_str().unwrap());
    let url = format!("store = \"postgres://{user}:{password}@postgres/{database}\"");
    assert!(read("deploy/cluster/heliostat.toml").contains(&url), "{url}");
    // Where the balancer finds its certificate is where HAProxy looks for the key.
    let certificate = options(&plan, "--certificate")[0];
    let mounted = mounts(&services["haproxy"]);
    let at = |inside: &str| beside_cluster(mounted.iter().find(|(it, _)| *it == inside).unwrap().1);
    assert_eq!(at(certificate), file("certs/throwaway-test-only-cert.pem"));
    assert_eq!(at(&format!("{certificate}.key")), file("certs/throwaway-test-only-key.pem"));
    let door = format!("127.0.0.1:{0}:{0}", options(&plan, "--port")[0]);
    assert_eq!(strings(&services["haproxy"]["ports"]), [door]);
}

#[test]
fn the_balancer_of_the_cluster_is_what_the_command_in_it_writes() {
    let text = read("deploy/cluster/haproxy.cfg");
    assert_eq!(String::from_utf8(heliostat(&made_by(&text))).unwrap(), text);
}

#[test]
fn the_page_about_clusters_shows_commands_and_a_configuration_that_are_understood() {
    let page = read("docs/cluster.md");
    let config = page.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
    let token = file("deploy/throwaway-test-only-admin-token");
    let config = config.replace("/etc/heliostat/admin-token", token.to_str().unwrap());
    let config = Config::parse("cluster.md", &config).unwrap();
    assert_eq!(config.cluster.name.as_deref(), Some("node-1"));
    let joined = page.replace("\\\n", " ");
    let mut found = 0;
    for command in joined.lines().filter_map(|line| line.strip_prefix("$ heliostat ")) {
        let words = command.split('>').next().unwrap().split_whitespace();
        let words: Vec<&str> = words.map(|word| if word == "…" { "n=10.0.0.1:8080" } else { word }).collect();
        understood(&words);
        if words[0] == "shard" && !words.contains(&"--for") {
            let table = String::from_utf8(heliostat(&words)).unwrap();
            assert!(page.contains(&table), "{table}");
        }
        found += 1;
    }
    assert!(found >= 5, "the commands were found");
}

/// The metrics an expression names, each with what it asks of their labels.
fn selectors(expression: &str) -> Vec<(&str, Vec<(&str, &str)>)> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut out = Vec::new();
    let mut rest = expression;
    while let Some(at) = rest.find(|c: char| c.is_ascii_alphabetic()) {
        rest = &rest[at..];
        let (name, after) = rest.split_at(rest.find(|c| !is_name(c)).unwrap_or(rest.len()));
        rest = after;
        if name.starts_with("heliostat_") || name.starts_with("process_") {
            let labels = rest.strip_prefix('{').and_then(|rest| rest.split('}').next()).unwrap_or_default();
            let labels = labels.split(',').filter_map(|label| {
                let (name, value) = label.split_once(['=', '!'])?;
                Some((name.trim(), value.trim_matches(['=', '~', '"'])))
            });
            out.push((name, labels.collect()));
        } else if let Some(quoted) = rest.strip_prefix('"') {
            rest = quoted.split_once('"').map_or("", |(_, rest)| rest);
        }
    }
    out
}

#[test]
fn every_metric_and_label_of_the_alerts_and_the_board_exists() {
    let scrape = heliostat::metrics::render();
    let types: Vec<(&str, &str)> =
        scrape.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    let alerts = yaml("deploy/alerts.yml");
    let board: Value = serde_json::from_str(&read("deploy/grafana/heliostat.json")).unwrap();
    let mut expressions: Vec<&str> = Vec::new();
    for rule in alerts["groups"][0]["rules"].as_array().unwrap() {
        assert!(matches!(rule["labels"]["severity"].as_str(), Some("page" | "ticket")), "{rule}");
        expressions.push(rule["expr"].as_str().unwrap());
    }
    let panels = board["panels"].as_array().unwrap();
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    expressions.extend(targets.map(|target| target["expr"].as_str().unwrap()));
    expressions.push(board["templating"]["list"][0]["query"]["query"].as_str().unwrap());
    let mut seen = 0;
    for expression in expressions {
        for (name, labels) in selectors(expression) {
            seen += 1;
            let (metric, kind) = types
                .iter()
                .find(|(metric, kind)| {
                    let part = name.strip_prefix(metric);
                    let parts = if *kind == "histogram" { &["_bucket", "_sum", "_count"][..] } else { &[""] };
                    part.is_some_and(|part| parts.contains(&part))
                })
                .unwrap_or_else(|| panic!("there is no {name}: {expression}"));
            if *kind == "counter" {
                let rated = ["rate(", "increase("].iter().any(|of| expression.contains(&format!("{of}{name}")));
                assert!(rated, "{name} only ever grows: {expression}");
            }
            // Those of Prometheus itself.
            for (label, values) in labels.into_iter().filter(|(label, _)| !["job", "instance"].contains(label)) {
                for value in values.split('|') {
                    let series =
                        |line: &&str| line.starts_with(metric) && line.contains(&format!("{label}=\"{value}\""));
                    assert!(scrape.lines().any(|line| series(&line)), "{name} has no {label}={value}: {expression}");
                }
            }
        }
    }
    assert!(seen > 50, "metrics were found: {seen}");
}

/// Prometheus's own opinion, where it is installed.
#[test]
fn promtool_accepts_configuration_and_alerts() {
    match Command::new("promtool").args(["check", "config"]).arg(file("deploy/prometheus.yml")).output() {
        Ok(output) => assert!(output.status.success(), "{output:?}"),
        Err(error) => eprintln!("skipped: promtool is not installed ({error})"),
    }
}

#[test]
fn every_alert_is_explained() {
    let docs = read("docs/troubleshooting.md");
    for rule in yaml("deploy/alerts.yml")["groups"][0]["rules"].as_array().unwrap() {
        let name = rule["alert"].as_str().unwrap();
        assert!(docs.contains(&format!("`{name}`")), "docs/troubleshooting.md says nothing about {name}");
    }
}

#[test]
fn what_the_container_image_runs_is_a_command_of_the_binary() {
    let dockerfile = read("Dockerfile");
    let exec = |instruction: &str| -> Vec<String> {
        let line = dockerfile.lines().find(|line| line.starts_with(instruction)).unwrap();
        serde_json::from_str(&line[line.find('[').unwrap()..]).unwrap()
    };
    assert_eq!(exec("ENTRYPOINT"), ["/usr/local/bin/heliostat"]);
    assert_eq!(exec("HEALTHCHECK")[0], "/usr/local/bin/heliostat");
    Cli::try_parse_from(exec("HEALTHCHECK")).unwrap();
    Cli::try_parse_from([exec("ENTRYPOINT"), exec("CMD")].concat()).unwrap();
    assert!(dockerfile.contains("heliostat man --dir "));
    // `cargo build` in the image sees what .dockerignore lets through.
    let through = read(".dockerignore");
    for needed in ["Cargo.toml", "Cargo.lock", "build.rs", "proto", "src"] {
        assert!(through.lines().any(|line| line == format!("!{needed}")), "{needed}");
    }
    // The compiler that is tested is the one that builds.
    let toolchain = dockerfile.lines().find_map(|line| line.strip_prefix("FROM rust:")).unwrap();
    let version: Vec<u32> = toolchain.split(['.', '-']).map_while(|part| part.parse().ok()).collect();
    assert_eq!(version.len(), 3, "pinned");
    let manifest = read("Cargo.toml");
    let least = manifest.lines().find_map(|line| line.strip_prefix("rust-version = \"")).unwrap();
    let least: Vec<u32> = least.trim_end_matches('"').split('.').map(|part| part.parse().unwrap()).collect();
    assert!(version >= least, "{version:?}");
}

fn heliostat(args: &[&str]) -> Vec<u8> {
    let output = Command::new(env!("CARGO_BIN_EXE_heliostat")).args(args).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

#[test]
fn the_binary_brings_its_manual_and_completions() {
    let page = String::from_utf8(heliostat(&["man"])).unwrap();
    assert!(page.contains(".TH heliostat 1") && page.contains("serve"), "{page}");
    let dir = tempfile::tempdir().unwrap();
    let man = dir.path().join("man1");
    heliostat(&["man", "--dir", man.to_str().unwrap()]);
    for page in ["heliostat.1", "heliostat-serve.1", "heliostat-admin-backup.1", "heliostat-config-check.1"] {
        let text = std::fs::read_to_string(man.join(page)).unwrap_or_else(|error| panic!("{page}: {error}"));
        assert!(text.contains(".SH NAME"), "{page}");
    }
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = String::from_utf8(heliostat(&["completions", shell])).unwrap();
        assert!(script.contains("heliostat") && script.contains("simulate"), "{shell}");
    }
}
