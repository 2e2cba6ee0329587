// Form fields for the sampling options of a model, made from the server's description.

const FIRST = ["guidance_scale", "steps", "strategy", "num_iterations"];
const LABELS = { guidance_scale: "Guidance", num_iterations: "AR iterations" };

function labelOf(name) {
  const words = name.replaceAll("_", " ");
  return LABELS[name] ?? words[0].toUpperCase() + words.slice(1);
}

function inputOf(option) {
  if (option.kind === "choice") {
    const select = document.createElement("select");
    select.append(...option.choices.map((choice) => new Option(choice, choice)));
    select.value = option.default;
    return select;
  }
  const input = document.createElement("input");
  if (option.kind === "int" || option.kind === "float") {
    input.type = "number";
    input.step = option.kind === "int" ? "1" : "any";
    if (option.low !== null) input.min = option.low;
    if (option.high !== null) input.max = option.high;
  }
  input.value = option.default === "None" ? "" : option.default;
  return input;
}

function fieldOf(option) {
  const field = document.createElement("div");
  field.className = "field";
  const input = inputOf(option);
  input.id = input.name = option.name;
  input.dataset.kind = option.kind;
  input.dataset.standard = input.value;
  const label = document.createElement("label");
  label.htmlFor = option.name;
  label.textContent = labelOf(option.name);
  const help = document.createElement("small");
  help.className = "muted";
  help.id = `${option.name}-help`;
  help.textContent = option.help ?? "";
  input.setAttribute("aria-describedby", help.id);
  field.append(label, input, help);
  return field;
}

/** Show a field for each option: common options in one element, the others in another. */
export function showOptions(options, usual, others) {
  const first = FIRST.flatMap((name) => options.filter((option) => option.name === name));
  usual.replaceChildren(...first.map(fieldOf));
  others.replaceChildren(...options.filter((o) => !FIRST.includes(o.name)).map(fieldOf));
}

/** The options that differ from the model's defaults, by name. */
export function chosenOptions(form) {
  const chosen = {};
  for (const input of form.querySelectorAll("[data-kind]")) {
    if (input.value === "" || input.value === input.dataset.standard) continue;
    const number = ["int", "float"].includes(input.dataset.kind);
    chosen[input.name] = number ? Number(input.value) : input.value;
  }
  return chosen;
}
