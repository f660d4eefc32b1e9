"use strict";

// What comes over the wire is only ever set as text: nothing here makes markup out of a string.

const RETRY_MS = 1000;
// The device says how it is every second; a stream that is silent for longer is dead.
const SILENT_MS = 10000;
// A page that nobody looks at costs the device nothing.
const HIDDEN_MS = 60000;
const MOST_ROWS = 100;
const BUCKET_S = 2;
const WINDOW_S = 300;
const TOKEN = "edgewise-token";

const $ = (id) => document.getElementById(id);

function make(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.map((child) => (child instanceof Node ? child : String(child))));
  return made;
}

function draw(tag, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

// Setting the same text again would have screen readers say it again.
function say(element, text, kind) {
  if (element.textContent !== text) element.textContent = text;
  element.classList.remove("good", "bad", "warn");
  if (kind) element.classList.add(kind);
}

// Figures.

const known = (value) => value !== null && value !== undefined;
const figure = (value) => (known(value) ? String(Number(value.toPrecision(3))) : "–");
const percent = (value) => (known(value) ? `${Math.round(value * 100)} %` : "–");

function seconds(value) {
  if (!known(value)) return "–";
  if (value < 0.001) return `${figure(value * 1e6)} µs`;
  if (value < 1) return `${figure(value * 1000)} ms`;
  if (value < 600) return `${figure(value)} s`;
  return value < 36000 ? `${Math.round(value / 60)} min` : `${figure(value / 3600)} h`;
}

function joules(value) {
  if (!known(value)) return "–";
  if (value >= 1 || value === 0) return `${figure(value)} J`;
  return value < 0.001 ? `${figure(value * 1e6)} µJ` : `${figure(value * 1000)} mJ`;
}

function clock(time) {
  return new Date(time * 1000).toLocaleTimeString([], { hour12: false });
}

// Requests.

class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function ask(path, options = {}) {
  const token = sessionStorage.getItem(TOKEN);
  const headers = token === null ? {} : { Authorization: `Bearer ${token}` };
  const response = await fetch(path, { ...options, headers, cache: "no-store" });
  if (!response.ok) {
    const said = await response.json().catch(() => ({}));
    throw new Refused(response.status, said.error || `the device said ${response.status}`);
  }
  return response;
}

const read = async (path, options) => (await ask(path, options)).json();

// The stream.

async function listen(abort) {
  const response = await ask("/api/events", { signal: abort.signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const silent = setTimeout(() => abort.abort(), SILENT_MS);
    const { value, done } = await reader.read().finally(() => clearTimeout(silent));
    if (done) return;
    rest += value;
    const events = rest.split("\n\n");
    rest = events.pop();
    for (const event of events) take(event);
  }
}

function take(event) {
  const [, name, data] = /^event: (.*)\ndata: (.*)$/.exec(event);
  (name === "state" ? showState : showJobs)(JSON.parse(data));
}

async function run() {
  for (;;) {
    await looked();
    const abort = new AbortController();
    let hiding = null;
    const onVisibility = () => {
      clearTimeout(hiding);
      if (document.hidden) hiding = setTimeout(() => abort.abort(), HIDDEN_MS);
    };
    document.addEventListener("visibilitychange", onVisibility);
    try {
      begin();
      await Promise.all([listen(abort), recall(abort)]);
    } catch (error) {
      if (error.status === 401) {
        await askForToken();
        continue;
      }
    } finally {
      document.removeEventListener("visibilitychange", onVisibility);
      clearTimeout(hiding);
      abort.abort();
    }
    say($("link"), "no connection", "bad");
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
  }
}

function looked() {
  if (!document.hidden) return Promise.resolve();
  return new Promise((resolve) => {
    document.addEventListener("visibilitychange", resolve, { once: true });
  });
}

function askForToken() {
  const refused = sessionStorage.getItem(TOKEN) !== null;
  sessionStorage.removeItem(TOKEN);
  say($("link"), "token needed", "warn");
  say($("token-said"), refused ? "The device did not take that token." : "", "bad");
  $("shown").hidden = true;
  $("token").hidden = false;
  $("secret").value = "";
  $("secret").focus();
  return new Promise((resolve) => {
    $("token").addEventListener(
      "submit",
      (event) => {
        event.preventDefault();
        sessionStorage.setItem(TOKEN, $("secret").value.trim());
        $("secret").value = "";
        $("token").hidden = true;
        resolve();
      },
      { once: true },
    );
  });
}

// The device and its routes.

let paused = false;
let ahead = 0; // seconds that the device's clock is ahead of ours

function showState(state) {
  say($("link"), "live", "good");
  $("shown").hidden = false;
  document.title = `${state.id} – Edgewise`;
  say($("device"), state.id);
  say($("version"), `Edgewise ${state.version}`);
  $("trouble").hidden = state.trouble === null;
  say($("trouble"), state.trouble === null ? "" : `Not ready: ${state.trouble}`);
  paused = state.paused;
  ahead = state.time - Date.now() / 1000;
  tiles(state);
  routes(state);
  estimates(state);
  controls(state);
}

function tiles(state) {
  const { device, jobs } = state;
  const shown = [];
  if (known(device.battery_charge_ratio)) {
    const left = known(device.battery_time_left_s)
      ? `, ${seconds(device.battery_time_left_s)} left`
      : "";
    const draining = device.battery_discharging ? `on battery${left}` : "on mains";
    shown.push(["Battery", percent(device.battery_charge_ratio), draining]);
  }
  const more = [];
  if (known(device.cpu_temperature_celsius)) more.push(`${figure(device.cpu_temperature_celsius)} °C`);
  if (known(device.cpu_contention_ratio)) more.push(`${percent(device.cpu_contention_ratio)} by others`);
  if (known(device.power_watts)) more.push(`${figure(device.power_watts)} W`);
  shown.push(["CPU busy", percent(device.cpu_utilization_ratio), more.join(", ")]);
  const up = { true: "up", false: "down" }[device.network_up] || "–";
  const link = [device.network_kind, device.network_metered ? "metered" : null].filter(known);
  shown.push(["Network", up, link.join(", "), up === "down" ? "bad" : null]);
  const waiting = Object.values(state.routes).reduce((sum, route) => sum + route.waiting, 0);
  const stored = jobs.stored.deferred ? `, ${jobs.stored.deferred} deferred` : "";
  const backlog = state.paused ? "paused" : `${waiting} waiting for a route${stored}`;
  shown.push(["Unfinished jobs", jobs.unfinished, backlog, state.paused ? "warn" : null]);
  shown.push(["Policy", state.policy, ""]);
  for (const [name, budget] of Object.entries(state.budgets)) {
    const share = budget.limit ? budget.spent / budget.limit : 1;
    const of = `${figure(budget.spent)} of ${figure(budget.limit)}`;
    shown.push([name.replaceAll("_", " "), percent(share), of, share >= 1 ? "bad" : null]);
  }
  $("tiles").replaceChildren(
    ...shown.map(([name, value, below, kind]) =>
      make(
        "div",
        {},
        make("dt", {}, name),
        make("dd", { class: `value ${kind || ""}` }, value),
        make("dd", { class: "more" }, below),
      ),
    ),
  );
}

const numbers = (...texts) => texts.map((text) => make("td", { class: "n" }, text));

function routes(state) {
  const rows = Object.entries(state.routes).map(([name, route]) => {
    const endpoint = state.endpoints[name.slice(name.indexOf(":") + 1)];
    let [text, kind] = ["open to jobs", "good"];
    if (endpoint && endpoint.circuit === "open") {
      [text, kind] = [`circuit open: ${endpoint.last_failure || "it failed"}`, "bad"];
    } else if (endpoint && endpoint.reachable === false) {
      [text, kind] = ["does not answer", "bad"];
    } else if (endpoint && endpoint.last_failure) {
      [text, kind] = [`circuit closed, last: ${endpoint.last_failure}`, "warn"];
    } else if (endpoint) {
      text = "circuit closed";
    }
    const uplink = endpoint && known(endpoint.uplink_bytes_per_s);
    return make(
      "tr",
      {},
      make("th", { scope: "row" }, make("span", { class: colour(name) }, name)),
      make("td", { class: `wrap ${kind}` }, text),
      ...numbers(
        route.waiting,
        route.running,
        endpoint ? seconds(endpoint.rtt_s) : "–",
        uplink ? `${figure(endpoint.uplink_bytes_per_s * 8e-6)} Mbit/s` : "–",
        endpoint ? percent(endpoint.failure_probability) : "–",
      ),
    );
  });
  $("routes").replaceChildren(...rows);
}

function estimates(state) {
  const rows = [];
  for (const [model, { routes: found }] of Object.entries(state.models)) {
    for (const [route, estimate] of Object.entries(found)) {
      rows.push(
        make(
          "tr",
          {},
          make("td", {}, model),
          make("td", {}, route),
          ...numbers(
            seconds(estimate.latency_mean_s),
            seconds(estimate.latency_p95_s),
            percent(estimate.failure_probability),
            joules(estimate.energy_j),
            figure(estimate.cost),
            estimate.samples,
          ),
        ),
      );
    }
  }
  $("estimates").replaceChildren(...rows);
}

// Decisions.

const rows = new Map(); // table rows by decision
const live = new Set(); // the jobs of those that came over the stream
let held = []; // what came while somebody reads
let readers = 0; // a pointer over the list

const key = (row) => `${row.time} ${row.id}`;
const isRead = () => readers > 0 || $("jobs").contains(document.activeElement);

function begin() {
  rows.clear();
  live.clear();
  held = [];
  $("jobs").replaceChildren();
  buckets.clear();
  first = null;
}

async function recall(abort) {
  const { rows: earlier, attempts } = await read("/api/decisions", { signal: abort.signal });
  // The stream began before, so that none is missed between; some may be in both.
  for (const attempt of attempts) {
    if (!live.has(attempt.id)) count(attempt.time, attempt.route, of(attempt));
  }
  const missing = earlier.filter((row) => !live.has(row.id)).reverse();
  $("jobs").append(...missing.slice(0, Math.max(0, MOST_ROWS - rows.size)).map(add));
  $("none").hidden = rows.size > 0;
  charts();
}

function of(attempt) {
  const latency = attempt.failed ? null : attempt.latency_s;
  return { count: 1, cost: attempt.cost, energy_j: attempt.energy_j, p50_s: latency, p95_s: latency };
}

function showJobs(report) {
  for (const row of report.rows) live.add(row.id);
  while (live.size > 10 * MOST_ROWS) live.delete(live.values().next().value);
  for (const row of report.ended) {
    const shown = rows.get(key(row));
    if (shown) fill(shown, row);
    const waiting = held.findIndex((other) => key(other) === key(row));
    if (waiting >= 0) held[waiting] = row;
  }
  held = held.concat(report.rows).slice(-MOST_ROWS);
  for (const [route, spent] of Object.entries(report.routes)) count(report.time, route, spent);
  release();
}

function release() {
  if (isRead()) {
    $("held").textContent = held.length ? `held while you read: ${held.length} new` : "";
    return;
  }
  $("held").textContent = "";
  for (const row of held) $("jobs").prepend(add(row));
  held = [];
  while ($("jobs").rows.length > MOST_ROWS) {
    const last = $("jobs").lastElementChild;
    rows.delete(last.dataset.key);
    last.remove();
  }
  $("none").hidden = rows.size > 0;
}

function add(row) {
  const shown = make("tr", {});
  shown.dataset.key = key(row);
  rows.set(key(row), shown);
  fill(shown, row);
  return shown;
}

function fill(shown, row) {
  const [text, kind] = outcome(row);
  const button = make("button", { type: "button", title: `Explain job ${row.id}` }, row.id);
  const cells = [
    make("td", { class: "when" }, clock(row.time)),
    make("td", {}, button),
    make("td", { class: "model", title: row.model }, row.model),
    make("td", { title: row.route }, make("span", { class: colour(row.route) }, row.route || "none")),
    make("td", { class: "why" }, (row.reason || "not decided").replaceAll("_", " ")),
    make("td", { class: `n ${kind}`, title: text }, text),
  ];
  // The button keeps the focus that it may have.
  if (shown.cells.length) shown.cells[5].replaceWith(cells[5]);
  else shown.append(...cells);
}

function outcome(row) {
  if (row.error) return [row.error.replaceAll("_", " "), "bad"];
  if (known(row.total_s)) return [seconds(row.total_s), ""];
  if (row.waits) return [`waits: ${row.waits}`, "warn"];
  return row.again ? ["decided again", "warn"] : ["under way", ""];
}

$("jobs").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) explain(button.textContent);
});
$("jobs").addEventListener("pointerenter", (event) => {
  if (event.pointerType === "mouse") readers = 1;
});
$("jobs").addEventListener("pointerleave", () => {
  readers = 0;
  release();
});
$("jobs").addEventListener("focusout", () => setTimeout(release));
$("find").addEventListener("submit", (event) => {
  event.preventDefault();
  explain($("wanted").value.trim());
});

// Why: what `edgewise explain` tells.

async function explain(id) {
  say($("why-title"), `Job ${id}`);
  $("told").replaceChildren(make("p", {}, "…"));
  if (!$("why").open) $("why").showModal();
  let told;
  try {
    const { decisions } = await read(`/api/jobs/${encodeURIComponent(id)}`);
    told = decisions.flatMap((decision, index) => explanation(decision, index, decisions.length));
  } catch (error) {
    told = [make("p", {}, sentence(error.message))];
  }
  if ($("why-title").textContent === `Job ${id}`) $("told").replaceChildren(...told);
}

const sentence = (text) => `${text.charAt(0).toUpperCase()}${text.slice(1)}.`;

function explanation(decision, index, of) {
  const model = decision.model ? `, model ${decision.model}` : "";
  const title = `Decision ${index + 1} of ${of}, ${new Date(decision.time * 1000).toLocaleString()}${model}`;
  return [
    make("h3", {}, title),
    ...decision.sentences.map((text) => make("p", {}, text)),
    ...[decision.candidates, decision.terms].filter((table) => table && table.rows.length).map(grid),
  ];
}

function grid({ titles, rows: cells }) {
  const worded = (index) => ["route", "term", "closed because"].includes(titles[index]);
  const cell = (tag) => (text, index) => make(tag, { class: worded(index) ? "wide" : "n" }, text);
  return make(
    "div",
    { class: "scroll" },
    make(
      "table",
      {},
      make("thead", {}, make("tr", {}, ...titles.map(cell("th")))),
      make("tbody", {}, ...cells.map((row) => make("tr", {}, ...row.map(cell("td"))))),
    ),
  );
}

$("close").addEventListener("click", () => $("why").close());

// Charts: the last five minutes by route, in buckets of two seconds.

const buckets = new Map(); // by route, then by number
const colours = [];
let first = null; // the first bucket that anything is known of

function colour(route) {
  if (!route) return "";
  if (!colours.includes(route)) colours.push(route);
  return `r${colours.indexOf(route) % 6}`;
}

const bucketOf = (time) => Math.floor(time / BUCKET_S);

function count(time, route, spent) {
  const number = bucketOf(time);
  if (!buckets.has(route)) buckets.set(route, new Map());
  const of = buckets.get(route);
  const sum = of.get(number) || { count: 0, cost: 0, energy: 0, timed: 0, p50: 0, p95: 0 };
  of.set(number, sum);
  sum.count += spent.count;
  sum.cost += spent.cost;
  sum.energy += spent.energy_j;
  if (known(spent.p50_s)) {
    sum.timed += spent.count;
    sum.p50 += spent.p50_s * spent.count;
    sum.p95 = Math.max(sum.p95, spent.p95_s);
  }
  first = first === null ? number : Math.min(first, number);
}

const CHARTS = [
  ["rate", "Jobs a second", (b) => b.count / BUCKET_S, null, (v) => `${figure(v)}/s`, 0],
  ["latency", "Latency: median, thin p95", (b) => (b.timed ? b.p50 / b.timed : null), (b) => (b.timed ? b.p95 : null), seconds, null],
  ["cost", "Price a minute", (b) => (b.cost * 60) / BUCKET_S, null, figure, 0],
  ["energy", "Power that jobs take", (b) => b.energy / BUCKET_S, null, (v) => `${figure(v)} W`, 0],
];

function charts() {
  const last = bucketOf(Date.now() / 1000 + ahead);
  const from = last - WINDOW_S / BUCKET_S;
  for (const of of buckets.values()) {
    for (const number of of.keys()) if (number < from) of.delete(number);
  }
  for (const chart of CHARTS) drawChart(chart, from, last);
}

function drawChart([name, title, value, above, written, idle], from, last) {
  const lines = [...buckets].map(([route, of]) => {
    const points = (get) => {
      const found = [];
      for (let number = Math.max(from, first); number < last; number += 1) {
        const bucket = of.get(number);
        found.push([number, bucket ? get(bucket) : idle]);
      }
      return found;
    };
    return { route, main: points(value), thin: above ? points(above) : [] };
  });
  const all = lines.flatMap(({ main, thin }) => [...main, ...thin]).map(([, v]) => v).filter(known);
  const top = Math.max(0, ...all);
  const place = ([number, v]) => {
    const x = ((number - from) / (last - from)) * 300;
    return `${x.toFixed(1)} ${(60 - (top ? v / top : 0) * 58).toFixed(1)}`;
  };
  const path = (points) => {
    let text = "";
    let pen = "M";
    for (const point of points) {
      if (known(point[1])) {
        // A dot where nothing is known to either side.
        text += `${pen}${place(point)}${pen === "M" ? "h0" : ""}`;
        pen = "L";
      } else pen = "M";
    }
    return text;
  };
  const svg = draw("svg", { viewBox: "0 0 300 60", preserveAspectRatio: "none", role: "img" });
  svg.append(draw("line", { class: "axis", x1: 0, x2: 300, y1: 60, y2: 60 }));
  const latest = lines.map(({ route, main, thin }) => {
    const style = colour(route);
    if (thin.length) svg.append(draw("path", { class: `thin ${style}`, d: path(thin) }));
    svg.append(draw("path", { class: style, d: path(main) }));
    const values = main.map(([, v]) => v).filter(known);
    return [route, style, values.length ? written(values[values.length - 1]) : "–"];
  });
  const summary = latest.map(([route, , text]) => `${route} ${text}`).join(", ");
  svg.setAttribute("aria-label", `${title}: ${summary || "nothing yet"}`);
  const caption = top ? `${title}, up to ${written(top)}` : `${title}: none`;
  const legend = latest.map(([route, style, text]) =>
    make("li", { class: style }, make("span", {}, `${route} ${text}`)),
  );
  $(`chart-${name}`).replaceChildren(
    make("figcaption", {}, caption),
    svg,
    make("ul", { class: "legend" }, ...legend),
  );
}

// Commands, where a token is set.

let asked = false;

async function controls(state) {
  $("controls").hidden = !state.controls;
  say($("pause"), state.paused ? "Resume" : "Pause");
  if (!state.controls || asked) return;
  asked = true;
  try {
    const { policies } = await read("/api/policies");
    const names = policies.map((policy) =>
      make("option", { value: policy.name, title: policy.summary }, policy.name),
    );
    $("policy").replaceChildren(...names);
    $("policy").value = state.policy;
  } catch {
    asked = false;
  }
}

async function command(name, body) {
  say($("control-said"), "…");
  try {
    await read(`/api/control/${name}`, { method: "POST", body });
    const said = { pause: "Paused.", resume: "Resumed.", policy: "Switched." };
    say($("control-said"), said[name], "good");
  } catch (error) {
    say($("control-said"), sentence(error.message), "bad");
  }
}

$("pause").addEventListener("click", () => command(paused ? "resume" : "pause"));
$("switch").addEventListener("submit", (event) => {
  event.preventDefault();
  command("policy", JSON.stringify({ name: $("policy").value }));
});

setInterval(() => {
  if (!document.hidden) charts();
}, 1000);
run();
