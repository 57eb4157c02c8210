// Rules for js/, run by .ci/run from the top folder. The globals that there are in a page of ComfyUI are named here,
// so that a misspelt one is found.

import js from "@eslint/js";

const readonly = (...names) => Object.fromEntries(names.map((name) => [name, "readonly"]));

const BROWSER = readonly(
  "cancelAnimationFrame", "console", "devicePixelRatio", "document", "getComputedStyle",
  "IntersectionObserver", "MutationObserver", "Notification", "performance", "queueMicrotask", "requestAnimationFrame",
  "ResizeObserver", "sessionStorage", "setTimeout", "URL", "URLSearchParams",
);
const COMFYUI = readonly("LGraphGroup", "LiteGraph");

export default [
  js.configs.recommended,
  {
    files: ["js/**/*.js"],
    languageOptions: { ecmaVersion: 2023, sourceType: "module", globals: { ...BROWSER, ...COMFYUI } },
    linterOptions: { reportUnusedDisableDirectives: "error" },
    rules: {
      "curly": ["error", "all"],
      "eqeqeq": ["error", "always", { null: "ignore" }],
      "max-len": ["error", { code: 110, ignoreUrls: true }],
      "max-lines": ["error", 400],
      "max-params": ["error", 6],
      "max-statements-per-line": ["error", { max: 1 }],
      "no-shadow": "error",
      "no-undef": "error",
      "no-unused-vars": "error",
      "no-var": "error",
      "prefer-const": ["error", { destructuring: "all" }],
    },
  },
];
