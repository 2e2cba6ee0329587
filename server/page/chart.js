// A chart of the denoising steps of each AR iteration, which shows what step annealing saves.

const WIDTH = 640;
const HEIGHT = 200;
const LEFT = 52;
const RIGHT = 4;
const TOP = 16;
const BOTTOM = 26;

function element(name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

/** Draw a bar for the steps of each iteration, before a background bar of constant steps. */
export function drawChart(svg, steps, iterations) {
  const highest = Math.max(...steps, 1);
  const slot = (WIDTH - LEFT - RIGHT) / iterations;
  const gap = slot > 6 ? 1.5 : 0;
  const height = HEIGHT - TOP - BOTTOM;
  const bottom = HEIGHT - BOTTOM;
  const parts = [];
  steps.forEach((count, iteration) => {
    const x = LEFT + iteration * slot + gap / 2;
    const tall = (count / highest) * height;
    const bar = { x, width: slot - gap };
    parts.push(element("rect", { ...bar, y: TOP, height: height - tall, class: "saved" }));
    const taken = element("rect", { ...bar, y: bottom - tall, height: tall, class: "bar" });
    taken.append(element("title", {}, `iteration ${iteration + 1}: ${count} steps`));
    parts.push(taken);
  });
  const line = { x1: LEFT, x2: WIDTH - RIGHT, y1: bottom, y2: bottom, class: "axis" };
  parts.push(element("line", line));
  parts.push(element("text", { x: LEFT - 6, y: TOP + 10, "text-anchor": "end" }, highest));
  parts.push(element("text", { x: LEFT - 6, y: bottom, "text-anchor": "end" }, 0));
  parts.push(element("text", { x: LEFT, y: HEIGHT - 7 }, "1"));
  const middle = (LEFT + WIDTH - RIGHT) / 2;
  parts.push(element("text", { x: middle, y: HEIGHT - 7, "text-anchor": "middle" }, "AR iteration"));
  const end = { x: WIDTH - RIGHT, y: HEIGHT - 7, "text-anchor": "end" };
  parts.push(element("text", end, iterations));
  svg.replaceChildren(...parts);
}

/** What the chart shows, in words. */
export function describeSteps(steps, iterations) {
  const taken = steps.reduce((sum, count) => sum + count, 0);
  const unannealed = Math.max(...steps, 1) * steps.length;
  const share = Math.round(100 * (1 - taken / unannealed));
  const part = steps.length < iterations ? ` so far, ${steps.length} of ${iterations} iterations` : "";
  const annealed = share > 0 ? `: ${share}% fewer than the ${unannealed} of constant steps` : "";
  return `An image takes ${taken} denoising steps${part}${annealed}.`;
}
