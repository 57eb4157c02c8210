// Small helpers for elements: made without innerHTML, and touched only where something changed.

/** Keys with a dash and "role" become attributes, all others properties; children are nodes or strings. */
export function make(tag, className = "", props = {}, ...children) {
  const element = document.createElement(tag);
  if (className) {
    element.className = className.split(" ").map((name) => `fewstep-${name}`).join(" ");
  }
  for (const [key, value] of Object.entries(props)) {
    if (key.includes("-") || key === "role") {
      element.setAttribute(key, value);
    } else {
      element[key] = value;
    }
  }
  element.append(...children);
  return element;
}

export function button(label, onclick, kind = "") {
  return make("button", `button ${kind}`.trim(), { type: "button", onclick }, label);
}

export function say(element, text) {
  if (element.textContent !== text) {
    element.textContent = text;
  }
}

export function mark(element, attribute, value) {
  if (element.getAttribute(attribute) !== String(value)) {
    element.setAttribute(attribute, value);
  }
}

/** Link a style sheet, once for each address. */
export function addStyles(href) {
  if ([...document.querySelectorAll("link")].some((link) => link.href === href)) {
    return;
  }
  document.head.append(make("link", "", { rel: "stylesheet", href }));
}
