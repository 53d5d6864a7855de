// Draws /status.json every two seconds. Everything that comes from the server enters the page as text.
"use strict";

const EVERY_MS = 2000;
const TIMEOUT_MS = 8000;
const KEY = "raylaunch-api-key";
const PAGE_TITLE = "raylaunch";

const byId = (id) => document.getElementById(id);
let revision = "";
let replica = 0;
let launch = null;
let answered = null;
let timer = 0;

// ---- small helpers

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function setText(id, text) {
  const target = byId(id);
  if (target.textContent !== text) target.textContent = text;  // the selection of a reader survives a refresh
}

function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value < 0.001) return `${(value * 1e6).toFixed(0)} µs`;
  if (value < 1) return `${(value * 1000).toFixed(value < 0.01 ? 1 : 0)} ms`;
  if (value >= 60) return duration(value);
  return `${value.toFixed(value < 10 ? 2 : 1)} s`;
}

function bytes(value) {
  if (value === null || value === undefined) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) { value /= 1024; unit += 1; }
  return `${unit && value < 100 ? value.toFixed(1) : value.toFixed(0)} ${units[unit]}`;
}

function count(value) {
  return value === null || value === undefined ? "–" : Number(value).toLocaleString("en");
}

function plural(value, noun) {
  return `${value} ${noun}${value === 1 ? "" : "s"}`;
}

function clock(epoch) {
  const date = new Date(epoch * 1000);
  const today = new Date().toDateString() === date.toDateString();
  return today ? date.toLocaleTimeString() : date.toLocaleString();
}

function duration(value) {
  const whole = Math.max(0, Math.round(value));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  if (whole < 86400) return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  return `${plural(Math.floor(whole / 86400), "day")} ${Math.floor((whole % 86400) / 3600)} h`;
}

// ---- asking the server

async function refresh() {
  clearTimeout(timer);
  try {
    const stop = new AbortController();
    const late = setTimeout(() => stop.abort(), TIMEOUT_MS);
    const key = sessionStorage.getItem(KEY);
    const headers = key ? { Authorization: `Bearer ${key}` } : {};
    let response;
    let data;
    try {
      response = await fetch(`status.json?launch=${encodeURIComponent(revision)}&replica=${replica}`, { headers, signal: stop.signal });
      if (response.ok) data = await response.json();
    } finally {
      clearTimeout(late);
    }
    if (response.status === 401 || response.status === 403) return askForKey(Boolean(key));
    if (!response.ok) throw new Error(`status ${response.status}`);
    answered = new Date();
    draw(data);
    tell("");
  } catch (error) {
    const since = answered ? `; what is shown is of ${answered.toLocaleTimeString()}` : "";
    const why = error instanceof TypeError || error.name === "AbortError" ? "" : ` (${error.message})`;
    tell(`The server does not answer${why}${since}. Asking again every ${EVERY_MS / 1000} s.`);
  }
  timer = setTimeout(refresh, EVERY_MS);
}

function tell(text) {
  setText("notice", text);
  byId("notice").hidden = !text;
  byId("content").classList.toggle("stale", Boolean(text));
  if (text) document.title = `? ${PAGE_TITLE}`;
}

function askForKey(refused) {
  sessionStorage.removeItem(KEY);
  tell("");
  byId("content").hidden = true;
  byId("key-form").hidden = false;
  if (refused) setText("key-text", "The server refused this key. It is kept until this tab is closed.");
  byId("key").focus();
}

function takeKey(event) {
  event.preventDefault();
  const key = byId("key").value.trim();
  if (!key) return;
  sessionStorage.setItem(KEY, key);
  byId("key").value = "";
  byId("key-form").hidden = true;
  revision = "";
  refresh();
}

// ---- drawing

function draw(data) {
  byId("content").hidden = false;
  if (data.launch) launch = data.launch;
  revision = data.revision;
  document.title = `${data.ready ? "ready" : data.condition} · ${data.name}`;
  setText("name", data.name);
  const each = plural(data.ranks.length, "rank");
  setText("model", data.replicas.length ? `${data.model} on ${data.replicas.length} replicas of ${each}` : `${data.model} on ${each}`);
  drawBanner(data);
  drawFigures(data);
  drawFailure(data.failure, data.ready);
  drawReplicas(data);
  if (data.launch || data.step) {
    drawTimeline(data);
    drawPhases(launch);
  }
  drawRanks(data);
  setText("footer", `raylaunch ${data.version} · as of ${clock(data.now)}, asked every ${EVERY_MS / 1000} s`);
}

function isStarting(data) {
  return data.condition === "launching" || data.condition === "rebuilding";
}

function drawBanner(data) {
  const words = { launching: data.restarts.done ? "Launching again" : "Launching", rebuilding: "Rebuilding", failed: "Failed", stopped: "Stopped", new: "Not started" };
  const word = data.ready ? "Ready" : words[data.condition] || "Not ready";
  const mood = data.ready ? "good" : isStarting(data) ? "busy" : "bad";
  byId("banner").className = `banner ${mood}`;
  setText("state", word);
  const since = data.ready && launch && launch.seconds !== null
    ? `for ${duration(data.now - launch.started - launch.seconds)}` : "";
  setText("since", since);
  const reason = data.reason === data.condition ? "" : data.reason;
  const shownBelow = data.failure && data.failure.headline === reason;  // once on a page is enough
  setText("reason", shownBelow ? "" : reason);
  const step = data.step
    ? `${data.step.of ? `Step ${data.step.done + 1} of ${data.step.of}: ` : ""}${data.step.text}, for ${seconds(Math.max(0, data.now - data.step.since))}` : "";
  setText("step", step);
  for (const id of ["reason", "step"]) byId(id).hidden = !byId(id).textContent;
}

function drawFigures(data) {
  const requests = data.requests;
  const restarts = data.restarts.left ? `${data.restarts.done}, ${data.restarts.left} left` : `${data.restarts.done}`;
  const figures = [
    ["running", count(requests.running), "requests"],
    ["waiting", count(requests.waiting), "requests"],
    ["tokens per second", requests.tokens_per_second.toFixed(requests.tokens_per_second < 10 ? 1 : 0), "last 5 s"],
    ["first token", seconds(requests.first_token_p50), "median, last minute"],
    ["restarts", restarts, "of the group"],
  ];
  byId("figures").replaceChildren(...figures.map(([name, value, note]) => {
    const box = element("div");
    box.append(element("dt", "", name), element("dd", "", value), element("dd", "quiet", note));
    return box;
  }));
}

function drawFailure(failure, ready) {
  byId("failure").hidden = !failure;
  byId("failure").classList.toggle("past", ready);
  if (!failure) return;
  if (byId("failure-text").textContent !== failure.text) byId("failure-evidence").open = !ready;
  const parts = [failure.when ? clock(failure.when) : "", failure.count > 1 ? `${failure.count} so far` : ""];
  setText("failure-when", parts.filter(Boolean).join(" · "));
  setText("failure-headline", failure.headline);
  setText("failure-text", failure.text);
}

function drawReplicas(data) {
  byId("replicas-panel").hidden = !data.replicas.length;
  byId("replicas").tBodies[0].replaceChildren(...data.replicas.map((one, number) => {
    const row = element("tr");
    const choose = element("button", "", `${number === data.replica ? "▸ " : ""}${number}`);
    choose.addEventListener("click", () => { replica = number; refresh(); });
    const name = element("td");
    name.append(choose);
    const state = element("td", "rank-state");
    const mood = one.ready ? "good" : one.condition === "launching" || one.condition === "rebuilding" ? "busy" : "bad";
    state.append(element("span", `dot ${mood}`), element("span", "", one.ready ? "ready" : one.reason || one.condition));
    const restarts = one.restarts.left ? `${one.restarts.done}, ${one.restarts.left} left` : String(one.restarts.done);
    row.append(name, state, element("td", "number", count(one.requests)), element("td", "number", restarts));
    return row;
  }));
}

function drawTimeline(data) {
  const box = byId("timeline");
  const running = data.step ? Math.max(0, data.now - launch.started) : 0;
  const total = Math.max(launch.total, running, 0.001);
  const rows = [];
  const seat = (name, bars, last) => {
    const row = element("div", "row");
    const track = element("div", "track");
    for (const bar of bars) track.append(drawBar(bar, total));
    if (data.step && last) track.append(drawBar({ phase: data.step.phase, kind: "now", text: data.step.text, start: data.step.since - launch.started, end: total }, total));
    row.append(element("span", "label", name), track);
    rows.push(row);
  };
  const placing = data.step && data.step.phase === "PLACE";
  seat("driver", launch.driver, placing);
  launch.ranks.forEach((rank, index) => seat(`rank ${rank.rank}`, launch.bars[index] || [], data.step && !placing));
  rows.push(drawAxis(total));
  box.replaceChildren(...rows);
  box.setAttribute("aria-label", `Timeline of the launch over ${seconds(total)}; the table below has its figures.`);
  const attempts = launch.attempts > 1 ? `, attempt ${launch.attempts}` : "";
  setText("launch-summary", launch.seconds !== null
    ? `ready after ${seconds(launch.seconds)}${attempts}, at ${clock(launch.started + launch.seconds)}`
    : launch.started ? `began at ${clock(launch.started)}${attempts}, not ready` : "not begun");
}

function drawBar(bar, total) {
  const drawn = element("div", `bar ${bar.kind} phase-${bar.phase}`);
  drawn.style.left = `${(100 * bar.start) / total}%`;
  drawn.style.width = `${(100 * Math.max(0, bar.end - bar.start)) / total}%`;
  const verb = { work: "", wait: "waits for its peers after ", now: "working towards " }[bar.kind];
  drawn.title = `${verb}${bar.text}: ${seconds(bar.end - bar.start)}, from ${seconds(bar.start)}`;
  return drawn;
}

function drawAxis(total) {
  const power = 10 ** Math.floor(Math.log10(total / 3));
  const step = [power, 2 * power, 5 * power].find((one) => total / one <= 6) || 10 * power;  // at most seven ticks
  const row = element("div", "row axis");
  const track = element("div", "track");
  for (let at = 0; at <= total; at += step) {
    const tick = element("span", "tick", `${Number(at.toPrecision(6))}${at === 0 ? " s" : ""}`);
    tick.style.left = `${(100 * at) / total}%`;
    track.append(tick);
  }
  row.append(element("span", "label", ""), track);
  return row;
}

function drawPhases(shown) {
  byId("phases").tBodies[0].replaceChildren(...shown.phases.map((phase) => {
    const row = element("tr");
    const name = element("td", "phase-name");
    name.append(element("span", `sample work phase-${phase.name}`), element("span", "", phase.name));
    const bars = element("td", "small-bars");
    const longest = Math.max(phase.seconds, ...phase.busy, 1e-9);
    if (phase.name !== "PLACE" && phase.seconds > 0) phase.busy.forEach((busy, rank) => {
      const track = element("div", "small-track");
      const work = element("div", `bar work phase-${phase.name}`);
      work.style.width = `${(100 * busy) / longest}%`;
      track.title = `rank ${rank}: works ${seconds(busy)}, waits ${seconds(Math.max(0, phase.seconds - busy))}`;
      track.append(work);
      bars.append(track);
    });
    row.append(name, element("td", "number", phase.seconds ? phase.seconds.toFixed(2) : "–"), bars, element("td", "what", phase.what));
    return row;
  }));
}

function drawRanks(data) {
  const places = new Map((launch ? launch.ranks : []).map((place) => [place.rank, place]));
  byId("ranks").tBodies[0].replaceChildren(...data.ranks.map((rank) => {
    const place = places.get(rank.rank) || {};
    const row = element("tr");
    const state = element("td", "rank-state");
    const mood = rank.answers ? "good" : isStarting(data) ? "busy" : "bad";
    state.append(element("span", `dot ${mood}`), element("span", "", rank.activity));
    row.append(element("td", "", String(rank.rank)), state);
    row.append(element("td", "", place.node || "–"), element("td", "number", place.pid ? String(place.pid) : "–"));
    row.append(element("td", "", place.device || "–"));
    const figures = [bytes(place.memory), count(place.graphs), count(place.registered), count(rank.counters.steps), count(rank.counters.tokens)];
    row.append(...figures.map((text) => element("td", "number", text)));
    return row;
  }));
}

byId("key-form").addEventListener("submit", takeKey);
document.addEventListener("visibilitychange", () => { if (!document.hidden && byId("key-form").hidden) refresh(); });
refresh();
