//! The manifests of Kubernetes.

use super::{at, check_cluster_file, files, list, text, words, yaml};
use serde_json::{Value, json};

fn objects() -> Vec<Value> {
    let kustomization = yaml("kubernetes/kustomization.yaml");
    let named = words(at(&kustomization[0], "/resources"));
    let mut there: Vec<String> = files();
    there.retain(|path| path.starts_with("kubernetes/") && path.ends_with(".yaml"));
    assert_eq!(named.len() + 1, there.len(), "{named:?} are not all of {there:?}");
    named.iter().flat_map(|name| yaml(&format!("kubernetes/{name}"))).collect()
}

fn find<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let found = objects.iter().find(|o| text(o, "/kind") == kind && text(o, "/metadata/name") == name);
    found.unwrap_or_else(|| panic!("no {kind} {name}"))
}

#[test]
fn objects_are_of_known_kinds_in_one_namespace() {
    let objects = objects();
    for object in &objects {
        let (kind, version) = (text(object, "/kind"), text(object, "/apiVersion"));
        let known = [
            ("Namespace", "v1"),
            ("ConfigMap", "v1"),
            ("Service", "v1"),
            ("StatefulSet", "apps/v1"),
            ("NetworkPolicy", "networking.k8s.io/v1"),
        ];
        assert!(known.contains(&(kind, version)), "{kind} {version}");
        let namespace = if kind == "Namespace" { "/metadata/name" } else { "/metadata/namespace" };
        assert_eq!(text(object, namespace), "diffgentor");
        let keys: &[&str] = if kind == "ConfigMap" { &["data"] } else { &["spec"] };
        let odd: Vec<_> = object.as_object().expect("an object").keys().collect();
        let is_known = |key: &str| ["apiVersion", "kind", "metadata"].contains(&key) || keys.contains(&key);
        assert!(odd.iter().all(|key| is_known(key)), "{kind}: {odd:?}");
    }
    let namespace = find(&objects, "Namespace", "diffgentor");
    let labels = at(namespace, "/metadata/labels");
    assert_eq!(labels["pod-security.kubernetes.io/enforce"], "restricted");
}

#[test]
fn services_and_policies_select_pods_that_are_there() {
    let objects = objects();
    let mut ports = 0;
    for name in ["head", "agent"] {
        let set = find(&objects, "StatefulSet", name);
        let service = find(&objects, "Service", name);
        let labels = at(set, "/spec/template/metadata/labels");
        assert_eq!(at(set, "/spec/selector/matchLabels"), labels, "{name}");
        assert_eq!(at(service, "/spec/selector"), labels, "{name}");
        assert_eq!(text(set, "/spec/serviceName"), name);
        // names of pods are needed, before they are ready
        assert_eq!(
            (text(service, "/spec/clusterIP"), at(service, "/spec/publishNotReadyAddresses")),
            ("None", &json!(true))
        );
        for port in list(service, "/spec/ports") {
            let of_pod = list(set, "/spec/template/spec/containers/0/ports");
            let same = |p: &&Value| p["name"] == port["targetPort"] && p["containerPort"] == port["port"];
            let of_pod = of_pod.iter().find(same).unwrap_or_else(|| panic!("no port for {port}"));
            assert_eq!((&port["protocol"], &of_pod["protocol"]), (&json!("UDP"), &json!("UDP")));
            ports += 1;
        }
        let selects = |o: &&Value| {
            text(o, "/kind") == "NetworkPolicy" && at(o, "/spec/podSelector/matchLabels") == labels
        };
        assert_eq!(objects.iter().filter(selects).count(), 1, "{name}");
    }
    assert_eq!(ports, 1, "the head's");
    let policy = find(&objects, "NetworkPolicy", "head");
    assert_eq!(list(policy, "/spec/ingress/0/ports"), [json!({"protocol": "UDP", "port": 7443})]);
    assert_eq!(at(find(&objects, "StatefulSet", "head"), "/spec/replicas"), 1, "one head, no election");
}

#[test]
fn pods_have_no_privileges_and_keys_stay_private() {
    let objects = objects();
    for name in ["head", "agent"] {
        let set = find(&objects, "StatefulSet", name);
        let pod = at(set, "/spec/template/spec");
        let security = at(pod, "/securityContext");
        assert_eq!(security["runAsNonRoot"], true, "{name}");
        assert!(security["runAsUser"].as_u64().is_some_and(|id| id > 0), "{name}");
        assert_eq!(security["seccompProfile"]["type"], "RuntimeDefault", "{name}");
        assert_eq!(pod["automountServiceAccountToken"], false, "{name}");
        assert!(pod["terminationGracePeriodSeconds"].as_u64().is_some_and(|s| s >= 60), "{name}");
        let is_kept = !list(set, "/spec/volumeClaimTemplates").is_empty();
        // a volume that is made readable for the group has keys that are refused
        assert!(!is_kept || security["fsGroupChangePolicy"] == "OnRootMismatch", "{name}");
        let volumes = list(pod, "/volumes").iter().chain(list(set, "/spec/volumeClaimTemplates"));
        let volumes: Vec<&Value> =
            volumes.map(|v| v.pointer("/metadata/name").unwrap_or_else(|| &v["name"])).collect();
        for container in list(pod, "/initContainers").iter().chain(list(pod, "/containers")) {
            let what = text(container, "/name");
            let security = at(container, "/securityContext");
            assert_eq!(security["allowPrivilegeEscalation"], false, "{what}");
            assert_eq!(security["readOnlyRootFilesystem"], true, "{what}");
            assert_eq!(security["capabilities"], json!({"drop": ["ALL"]}), "{what}");
            assert!(container.pointer("/resources/limits/memory").is_some(), "{what}");
            assert!(!text(container, "/image").ends_with(":latest"), "{what}");
            for mount in list(container, "/volumeMounts") {
                assert!(volumes.contains(&&mount["name"]), "{what}: no volume {mount}");
            }
        }
    }
    let head = at(find(&objects, "StatefulSet", "head"), "/spec/template/spec/containers/0");
    for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
        let command = words(at(head, &format!("/{probe}/exec/command")));
        assert_eq!(command[..2], ["dg-cluster", "status"], "{probe}");
    }
}

#[test]
fn the_file_in_the_config_map_names_the_pods() {
    let objects = objects();
    let toml = text(find(&objects, "ConfigMap", "cluster"), "/data/cluster.toml");
    let plan = check_cluster_file(toml);
    let agents = find(&objects, "StatefulSet", "agent");
    let replicas = at(agents, "/spec/replicas").as_u64().expect("a number");
    let pods: Vec<String> = (0..replicas).map(|n| format!("agent-{n}")).collect();
    let nodes: Vec<&str> = list(&plan, "/nodes").iter().map(|node| text(node, "/name")).collect();
    assert_eq!(nodes, pods);
    for node in list(&plan, "/nodes") {
        let address = format!("{}.agent.diffgentor.svc.cluster.local", text(node, "/name"));
        assert!(text(node, "/address").starts_with(&address), "{node}");
        assert_eq!(text(node, "/launch"), "manual");
    }
    let listen = "head-0.head.diffgentor.svc.cluster.local:7443";
    assert!(toml.contains(&format!("listen = \"{listen}\"")), "{toml}");
    let command = words(at(agents, "/spec/template/spec/containers/0/command"));
    let head = command.iter().position(|word| word == "--head").expect("agents are told the head");
    assert_eq!(command[head + 1], listen);
}
