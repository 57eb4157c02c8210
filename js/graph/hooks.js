// What the host calls on a node when something happens to it.

/** Call `then` too whenever the node's hook is called. */
export function after(node, hook, then) {
  const before = node[hook];
  node[hook] = function (...values) {
    const answer = before?.apply(this, values);
    then(...values);
    return answer;
  };
}

/** Call `then` whenever a property of the node gets another value, however the host keeps it. */
export function whenSet(node, name, then) {
  let found;
  for (let at = node; at && !found; at = Object.getPrototypeOf(at)) {
    found = Object.getOwnPropertyDescriptor(at, name);
  }
  let value = node[name];
  const get = () => (found?.get ? found.get.call(node) : value);
  Object.defineProperty(node, name, {
    configurable: true,
    enumerable: true,
    get,
    set(wanted) {
      const before = get();
      value = wanted;
      found?.set?.call(node, wanted);
      if (before !== wanted) {
        then();
      }
    },
  });
}
