// What AsyncAPI's own parser says of the document on stdin: its diagnostics, and what it found in there.
import { Parser } from "@asyncapi/parser";
import { text } from "node:stream/consumers";

const { document, diagnostics } = await new Parser().parse(await text(process.stdin));
const said = diagnostics.map(({ code, severity, message, path }) => ({ code, severity, message, path: path.join(".") }));
const found = document && {
  channels: document.channels().all().map((channel) => [channel.id(), channel.address(), channel.messages().all().length]),
  operations: document.operations().all().map((one) => [one.id(), one.action(), one.channels().all()[0].id()]),
  servers: document.servers().all().map((server) => [server.id(), server.host(), server.protocol()]),
};
console.log(JSON.stringify({ said, found }));
