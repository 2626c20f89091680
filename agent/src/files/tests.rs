use super::*;

fn policy(allowed: &std::path::Path) -> Policy {
    let path = allowed.to_str().unwrap();
    let text = format!(r#"{{"version":1,"copy_in":["{path}"],"copy_out":["{path}"]}}"#);
    Policy::read(Fields::parse(text.as_bytes(), "policy").unwrap()).unwrap()
}

fn folder(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("bedstone-agent-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).unwrap();
    path.canonicalize().unwrap()
}

fn record(header: &str, content: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u32).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(content);
    bytes
}

fn own(rest: &str) -> String {
    // Whoever runs the tests may give files to itself.
    let me = std::fs::metadata("/proc/self").unwrap();
    format!(r#"{{"user":{},"group":{},{rest}}}"#, me.uid(), me.gid())
}

#[test]
fn what_is_put_is_got_however_it_is_cut() {
    let path = folder("round");
    let mut bytes = record(
        &own(r#""name":"a/b","type":"file","size":5,"mode":384,"mtime":7"#),
        b"hello",
    );
    bytes.extend(record(&own(r#""name":"a/l","type":"symlink","target":"b""#), b""));
    bytes.extend(record(
        &own(r#""name":"a/h","type":"hardlink","target":"a/b""#),
        b"",
    ));
    bytes.extend(record(&own(r#""name":"e\u00ff","type":"file","size":0"#), b""));
    for size in [1, 7, 1000] {
        let mut put = Put::open(&policy(&path), path.to_str().unwrap()).unwrap();
        for part in bytes.chunks(size) {
            put.feed(part).unwrap();
        }
        put.finish().unwrap();
    }
    assert_eq!(std::fs::read(path.join("a/h")).unwrap(), b"hello");
    let known = std::fs::metadata(path.join("a/b")).unwrap();
    assert_eq!(
        (known.mode() & 0o7777, known.mtime(), known.nlink()),
        (0o600, 7, 2)
    );
    let mut get = Get::open(&policy(&path), path.to_str().unwrap()).unwrap();
    let mut out = Vec::new();
    while get.fill(&mut out, 11).unwrap() {}
    let text = String::from_utf8_lossy(&out);
    for part in ["/a/b\"", "\"target\":\"b\"", "hello", "/e\u{ff}\""] {
        assert!(text.contains(part), "{part} in {text}");
    }
    std::fs::remove_dir_all(path).unwrap();
}

#[test]
fn no_name_and_no_link_leads_out() {
    let path = folder("out");
    let outside = folder("outside");
    std::os::unix::fs::symlink(&outside, path.join("link")).unwrap();
    std::os::unix::fs::symlink("..", path.join("up")).unwrap();
    for name in ["../x", "/x", "a/../../x", "", "a//b", "link/x", "up/x"] {
        let mut put = Put::open(&policy(&path), path.to_str().unwrap()).unwrap();
        let header = own(&format!(r#""name":"{name}","type":"file","size":0"#));
        assert!(put.feed(&record(&header, b"")).is_err(), "{name}");
    }
    // A name that is a link is replaced, never written through.
    let mut put = Put::open(&policy(&path), path.to_str().unwrap()).unwrap();
    put.feed(&record(&own(r#""name":"link","type":"file","size":1"#), b"x"))
        .unwrap();
    assert!(std::fs::symlink_metadata(path.join("link")).unwrap().is_file());
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    std::fs::remove_dir_all(path).unwrap();
    std::fs::remove_dir_all(outside).unwrap();
}

#[test]
fn a_link_to_where_the_policy_does_not_lead_is_denied() {
    let path = folder("policy");
    std::os::unix::fs::symlink("/etc", path.join("link")).unwrap();
    let link = path.join("link");
    assert_eq!(
        Put::open(&policy(&path), link.to_str().unwrap())
            .err()
            .unwrap()
            .field,
        "copy_in"
    );
    let through = link.join("passwd");
    assert_eq!(
        Get::open(&policy(&path), through.to_str().unwrap())
            .err()
            .unwrap()
            .field,
        "copy_out"
    );
    assert_eq!(
        Get::open(&policy(&path), "/tmp/../etc").err().unwrap().field,
        "path"
    );
    std::fs::remove_dir_all(path).unwrap();
}

#[test]
fn changed_streams_never_panic() {
    let path = folder("fuzz");
    let bytes = record(&own(r#""name":"a","type":"file","size":5"#), b"hello");
    let mut seed = 5u64;
    for _ in 0..2000 {
        let mut changed = bytes.clone();
        seed = seed
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        let at = (seed >> 33) as usize % changed.len();
        changed[at] = (seed >> 20) as u8;
        let mut put = Put::open(&policy(&path), path.to_str().unwrap()).unwrap();
        if put.feed(&changed).is_ok() {
            let _ = put.finish();
        }
    }
    std::fs::remove_dir_all(path).unwrap();
}
