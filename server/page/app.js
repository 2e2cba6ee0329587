// The page of disa-serve: a form, previews of the images during generation, and a chart.

import { describeSteps, drawChart } from "./chart.js";
import { readEvents } from "./events.js";
import { chosenOptions, showOptions } from "./options.js";

const POLL_MS = 3000;
const PARTIAL_IMAGES = 3;
const SMALL_PIXELS = 128;

const byId = (id) => document.getElementById(id);
const form = byId("form");
let model = null;
let running = null;

function headers() {
  const key = byId("key").value.trim();
  return key ? { authorization: `Bearer ${key}` } : {};
}

async function problemOf(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `the server answered with ${response.status}`;
  }
}

async function fetchJson(path) {
  const response = await fetch(path, { headers: headers() });
  if (!response.ok) throw new Error(await problemOf(response));
  return response.json();
}

function showStatus(text) {
  byId("status").textContent = text;
}

function showProblem(text) {
  byId("problem").textContent = text;
}

// The queue

async function showQueue() {
  let text = "The server does not answer";
  try {
    const state = await (await fetch("/health/ready")).json();
    // Behind Ray Serve there are several replicas, each with all models.
    const models = (state.replicas ?? [state]).flatMap((each) => Object.values(each.models));
    const sum = (name) => models.reduce((total, each) => total + each[name], 0);
    text = `${state.status}: ${sum("running")} images running, ${sum("waiting")} waiting`;
    if (state.status === "ready" && (!model || !model.options)) await loadModels();
  } catch {
    // The text already says that the server does not answer.
  }
  byId("queue").textContent = text;
}

// The model

async function loadModels() {
  try {
    const { data } = await fetchJson("/v1/models");
    const select = byId("model");
    const chosen = select.value;
    select.replaceChildren(...data.map((each) => new Option(each.id, each.id)));
    if (chosen) select.value = chosen;
    await loadModel();
    showProblem("");
  } catch (error) {
    showProblem(error.message);
    byId("more").open = true;
  }
}

async function loadModel() {
  const name = byId("model").value;
  const found = await fetchJson(`/v1/models/${encodeURIComponent(name)}`);
  // Another model may have been chosen meanwhile, whose answer may have come earlier.
  if (byId("model").value !== name) return;
  model = found;
  if (!model.options) return showStatus(`The model ${model.id} is ${model.state}.`);
  const prompts = model.takes === "prompt";
  byId("prompt-field").hidden = !prompts;
  byId("class-field").hidden = prompts;
  byId("class").required = !prompts;
  byId("prompt").required = prompts;
  if (!prompts) showClasses();
  showOptions(model.options, byId("options"), byId("more-options"));
}

function showClasses() {
  const names = model.class_names ?? [];
  byId("classes").replaceChildren(...names.map((name) => new Option(name)));
  const last = model.classes - 1;
  const listed = names.length ? `A name from the list, or a number from 0 to ${last}.` : "";
  byId("class-help").textContent = listed || `A number from 0 to ${last}.`;
  if (!byId("class").value) byId("class").value = names[0] ?? "0";
}

// Generating

function requestOf() {
  const seed = byId("seed").value;
  return {
    model: model.id,
    prompt: model.takes === "prompt" ? byId("prompt").value : byId("class").value,
    n: Number(byId("n").value),
    first_image: Number(byId("first_image").value),
    ...(seed === "" ? {} : { seed: Number(seed) }),
    ...chosenOptions(form),
  };
}

async function generate() {
  const chosen = byId("model").value;
  if (chosen !== model?.id) return showProblem(`The model ${chosen} is not loaded yet.`);
  const request = requestOf();
  const stop = new AbortController();
  running?.abort();
  running = stop;
  showProblem("");
  busy(true);
  const figures = Array.from({ length: request.n }, () => new Figure(request));
  byId("grid").replaceChildren(...figures.map((figure) => figure.element));
  showStatus(`${plural(request.n)} of ${request.prompt}: waiting.`);
  try {
    await follow(request, figures, stop.signal);
  } catch (error) {
    if (stop.signal.aborted) showStatus("Stopped.");
    else {
      showProblem(error.message);
      showStatus("Stopped after an error.");
    }
  } finally {
    if (running === stop) busy(false);
  }
}

async function follow(request, figures, signal) {
  const begin = performance.now();
  const steps = figures.map(() => []);
  let done = 0;
  const response = await fetch("/v1/images/generations", {
    method: "POST",
    signal,
    headers: { "content-type": "application/json", ...headers() },
    body: JSON.stringify({
      ...request, stream: true, partial_images: PARTIAL_IMAGES, progress: true,
    }),
  });
  if (!response.ok) throw new Error(await problemOf(response));
  for await (const event of readEvents(response)) {
    const figure = figures[event.image];
    switch (event.type) {
      case "image_generation.progress":
        steps[event.image].push(event.steps);
        figure.advance(event);
        if (event.image === 0) showSteps(steps[0], event.iterations);
        break;
      case "image_generation.partial_image":
        figure.show(event, "preview of ");
        break;
      case "image_generation.completed":
        figure.finish(event);
        done += 1;
        break;
      case "error":
        throw new Error(event.error.message);
    }
    const seconds = ((performance.now() - begin) / 1000).toFixed(1);
    if (event.type !== "image_generation.progress") {
      showStatus(`${done} of ${plural(figures.length)} of ${request.prompt} done, ${seconds} s.`);
    }
  }
  if (done < figures.length) throw new Error("The connection ended before all images were complete.");
}

function plural(count) {
  return count === 1 ? "1 image" : `${count} images`;
}

function busy(on) {
  byId("generate").disabled = on;
  byId("stop").hidden = !on;
  byId("grid").setAttribute("aria-busy", on);
}

function showSteps(steps, iterations) {
  byId("annealing").hidden = false;
  drawChart(byId("chart"), steps, iterations);
  byId("saving").textContent = describeSteps(steps, iterations);
  byId("rows").replaceChildren(
    ...steps.map((count, iteration) => {
      const row = document.createElement("tr");
      row.insertCell().textContent = iteration + 1;
      row.insertCell().textContent = count;
      return row;
    }),
  );
}

class Figure {
  constructor(request) {
    this.request = request;
    this.element = document.createElement("figure");
    this.frame = document.createElement("div");
    this.frame.className = "frame";
    this.progress = document.createElement("progress");
    this.progress.setAttribute("aria-label", `an image of ${request.prompt}`);
    this.caption = document.createElement("figcaption");
    this.frame.append(this.progress);
    this.element.append(this.frame, this.caption);
  }

  advance(event) {
    this.progress.max = event.iterations;
    this.progress.value = event.iteration;
  }

  show(event, what) {
    const image = document.createElement("img");
    image.alt = `${what}${this.request.prompt}`;
    image.className = Math.max(...event.size.split("x").map(Number)) < SMALL_PIXELS ? "small" : "";
    image.src = `data:image/${event.output_format};base64,${event.b64_json}`;
    this.frame.querySelector("img")?.remove();
    this.frame.prepend(image);
  }

  finish(event) {
    this.show(event, "");
    this.progress.remove();
    const link = document.createElement("a");
    link.href = `#${new URLSearchParams({
      ...this.request, n: 1, seed: event.seed, first_image: event.index,
    })}`;
    link.textContent = "Repeat";
    link.setAttribute("aria-label", `Repeat seed ${event.seed}, image ${event.index}`);
    const waited = event.seconds.queue >= 0.1 ? `, ${event.seconds.queue.toFixed(1)} s queued` : "";
    this.caption.replaceChildren(
      paragraph(`seed ${event.seed}, image ${event.index}`),
      paragraph(`${event.head_calls} steps, ${event.seconds.model.toFixed(1)} s${waited}`),
      link,
    );
  }
}

function paragraph(text) {
  const made = document.createElement("p");
  made.textContent = text;
  return made;
}

// Links that repeat an image

async function repeat() {
  const initial = new URLSearchParams(location.hash.slice(1));
  if (!initial.has("prompt")) return;
  if (initial.has("model") && initial.get("model") !== model?.id) {
    const name = initial.get("model");
    if (![...byId("model").options].some((each) => each.value === name)) {
      throw new Error(`This server has no model ${name}.`);
    }
    byId("model").value = name;
    await loadModel();
  }
  for (const input of form.querySelectorAll("[data-kind]")) input.value = input.dataset.standard;
  for (const [name, value] of initial) {
    const input = name === "prompt" ? byId(model.takes === "prompt" ? "prompt" : "class") : byId(name);
    if (input && form.contains(input) && name !== "model" && name !== "key") input.value = value;
  }
  if (form.reportValidity()) await generate();
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  generate();
});
byId("model").addEventListener("change", () => loadModel().catch((e) => showProblem(e.message)));
byId("key").addEventListener("change", loadModels);
byId("stop").addEventListener("click", () => running?.abort());
window.addEventListener("hashchange", () => repeat().catch((e) => showProblem(e.message)));
setInterval(() => document.hidden || showQueue(), POLL_MS);
await showQueue();
if (model?.options) await repeat().catch((error) => showProblem(error.message));
